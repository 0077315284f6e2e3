"""The trial before the first step: it measures, and leaves no trace."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from train_tiny import train_tiny

from tunery.errors import RunError
from tunery.run import Run
from tunery.sharding._engine import Engine
from tunery.train.trial import Pace, trial


def engine_of(*parameters: torch.nn.Parameter) -> Engine:
    engine, model = Engine(), torch.nn.ParameterList(parameters)
    engine.shard(model, model)
    engine.begin([{"params": list(parameters) or [torch.nn.Parameter(torch.ones(1))]}], 1e-3, 0.0, None)
    return engine


@dataclass(frozen=True)
class Batch:
    """What `positions` asks a pack for, and the rows that it is made of."""

    tokens: np.ndarray
    rows: list[int]


STEPS, LENGTHS = [np.array([0, 1]), np.array([2]), np.array([3, 4])], np.array([5, 6, 40, 30, 15])


def one_row_each(rows: np.ndarray) -> list[Batch]:
    return [Batch(np.zeros(LENGTHS[n]), [n]) for n in rows.tolist()]


def together(rows: np.ndarray) -> list[Batch]:
    return [Batch(np.zeros(LENGTHS[rows].sum()), rows.tolist())]


@pytest.mark.parametrize(("batches", "largest", "there_before"), [(one_row_each, [2], True), (together, [3, 4], False)])
def test_the_largest_batch_alone_is_computed_and_nothing_stays(
    batches: Callable[[np.ndarray], list[Batch]], largest: list[int], there_before: bool
) -> None:
    """The step with most tokens is the last; the longest row, in a batch of its own, is not in it."""
    p = torch.nn.Parameter(torch.ones(10))
    seen: list[tuple[list[int], bool, bool]] = []

    def compute(batch: Batch, last: bool) -> None:
        seen.append((batch.rows, last, p.grad is not None))
        (p * torch.rand(10)).sum().backward()

    state = torch.get_rng_state()
    held = trial(STEPS, LENGTHS, batches, compute, engine_of(p))
    assert seen == [(largest, True, there_before)]
    assert p.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert held > 50_000_000


def test_processes_with_places_of_their_own_fill_them_by_a_small_batch() -> None:
    p, seen = torch.nn.Parameter(torch.ones(10)), []
    engine = engine_of(p)
    engine.alone = False  # type: ignore[misc]

    def compute(batch: Batch, last: bool) -> None:
        seen.append((batch.rows, last))

    trial(STEPS, LENGTHS, one_row_each, compute, engine)
    assert seen == [([4], False), ([2], True)]


def test_what_does_not_fit_names_the_keys() -> None:
    def compute(batch: Batch, last: bool) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(RunError, match=r"the largest batch \(45 tokens\) does not fit.*tokens_per_step"):
        trial(STEPS, LENGTHS, together, compute, engine_of())


def test_the_time_of_a_run_is_that_of_its_first_steps_carried_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 12.0, 20.0, 24.0])  # steps of 9, 2 and 4 seconds
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    pace, known = Pace([50, 10, 20, 100, 200]), []
    for _ in range(3):
        with pace.step():
            pass
        known.append(pace.known())
    assert known == [None, None, 9 + 6 / 30 * 330]


def test_a_run_shorter_than_what_is_measured_knows_its_time_at_its_end() -> None:
    pace = Pace([7])
    assert pace.known() is None
    with pace.step():
        pass
    assert pace.known() == pace._seconds[0]


def test_a_run_holds_its_plan(tiny_llama: Path, tmp_path: Path) -> None:
    train_tiny(tiny_llama, tmp_path / "run", epochs=1)
    plan = Run(tmp_path / "run").read_json("plan.json")
    assert set(plan) == {"peak_memory_bytes", "seconds"}
    assert plan["peak_memory_bytes"] > 50_000_000
    assert 0 < plan["seconds"] < 10 * (1 + Run(tmp_path / "run").metrics()[-1]["seconds"])
