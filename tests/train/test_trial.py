"""The trial before the first step: it measures, and leaves no trace."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_tiny import train_tiny

from tunery.errors import RunError
from tunery.run import Run
from tunery.sharding._engine import Engine
from tunery.train.trial import trial


def engine_of(*parameters: torch.nn.Parameter) -> Engine:
    engine, model = Engine(), torch.nn.ParameterList(parameters)
    engine.shard(model, model)
    engine.begin([{"params": list(parameters) or [torch.nn.Parameter(torch.ones(1))]}], 1e-3, 0.0, None)
    return engine


def nothing() -> Any:
    return None


def test_the_largest_step_comes_first_and_nothing_stays() -> None:
    p = torch.nn.Parameter(torch.ones(10))
    seen: list[list[int]] = []

    def compute(rows: np.ndarray) -> None:
        seen.append(rows.tolist())
        (p * torch.rand(10)).sum().backward()

    steps, lengths = [np.array([0, 1]), np.array([2]), np.array([3, 4])], np.array([5, 6, 40, 1, 1])
    state = torch.get_rng_state()
    plan = trial(steps, lengths, compute, engine_of(p), nothing)
    assert seen == [[2], [0, 1]]
    assert p.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert plan["peak_memory_bytes"] > 50_000_000
    assert plan["seconds"] >= 0


def test_what_does_not_fit_names_the_keys() -> None:
    def compute(rows: np.ndarray) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(RunError, match=r"the largest step \(7 tokens\) does not fit.*tokens_per_step"):
        trial([np.array([0])], np.array([7]), compute, engine_of(), nothing)


def test_a_run_holds_its_plan(tiny_llama: Path, tmp_path: Path) -> None:
    train_tiny(tiny_llama, tmp_path / "run", epochs=1)
    plan = Run(tmp_path / "run").read_json("plan.json")
    assert set(plan) == {"peak_memory_bytes", "seconds"}
