"""Runs in several processes, shared by the tests of this folder: starting them takes longer than what they compute."""

from __future__ import annotations

from pathlib import Path

import launched
import pytest
import sharded
import torch
from sharded import DROPOUT, METHODS, STAGES, WHOLE, ZERO, Measured, case, name_of

from tunery.pipeline import finetune


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """The run of `launched.job` in one process."""
    folder = tmp_path_factory.mktemp("alone")
    return finetune(launched.job(folder / "job", tiny_llama), folder / "run").path


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_phi3: Path) -> Measured:
    """Everything in one process, without sharding: what the others are compared with."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("one")
    cases = [
        *(case(tiny_llama, "none", method) for method in METHODS),
        case(tiny_phi3, "none", "lora", "phi3"),
    ]
    return Measured(folder, {c["name"]: sharded.measure(c, folder) for c in cases})


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory, one: Measured, tiny_llama: Path, tiny_phi3: Path) -> Measured:
    """Every stage with every method in two processes; runs with dropout, and the same again from the middle; a few special ones."""
    folder = tmp_path_factory.mktemp("two")
    cases = [case(tiny_llama, stage, method) for stage in STAGES for method in METHODS]
    for stage in STAGES:
        dropping = {"options": DROPOUT, "gradients": False, "train": {"epochs": 2}}
        cases.append(case(tiny_llama, stage, "lora", "dropout", **dropping))
        whole = folder / name_of(stage, "lora", "dropout")
        cases.append(case(tiny_llama, stage, "lora", "dropout-resumed", **dropping, after=str(whole)))
    again = {"train": {"gradient_checkpointing": True}}
    cases += [case(tiny_phi3, stage, "lora", "phi3", **again) for stage in ("zero3", "fsdp")]
    for stage in ZERO:
        offloading = {"gradients": False, "sharding": {**(WHOLE if stage == "zero3" else {}), "offload": "cpu"}}
        cases += [case(tiny_llama, stage, method, "offload", **offloading) for method in ("full", "lora")]
        whole = folder / name_of(stage, "full", "offload")
        cases.append(case(tiny_llama, stage, "full", "offload-resumed", **offloading, after=str(whole)))
    # From one process, and from another sharding.
    cases += [
        case(tiny_llama, stage, "full", f"after-{other}", gradients=False, after=str(place / name_of(other, "full")))
        for stage, other, place in (("zero3", "none", one.folder), ("fsdp", "zero2", folder), ("zero1", "fsdp", folder))
    ]
    return Measured(folder, sharded.start(folder, 2, cases))


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory, two: Measured, tiny_llama: Path) -> Measured:
    """Every stage in three processes, from the middle of a run in two."""
    folder = tmp_path_factory.mktemp("three")
    cases = [
        case(tiny_llama, stage, "full", "after-two", gradients=False, after=str(two.folder / name_of(stage, "full"))) for stage in STAGES
    ]
    return Measured(folder, sharded.start(folder, 3, cases))
