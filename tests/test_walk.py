"""A pairwise cover of the combination table, walked for real: every two choices that may stand together are trained together here.

The cells of one process are covered in all their pairs. Those of several processes have a cover of their own, over the methods that differ
in what is divided; `make walk` does every cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import walk_case
from forked import forked_processes
from pairwise import cover
from walk_case import Case, model_folder, walk

from tunery import combinations
from tunery.combinations.walked import ARCHITECTURES, FROM_SAVED
from tunery.run import Run

SHARDED = {"method": ("full", "lora", "dora"), "task": ("chat", "classify", "preference")}
"""The base's own weights, matrices beside a frozen base, and a method that reads whole frozen weights; a task of each form."""

SECONDS = {"onnx": 6.0}
"""What an export takes, where that is more than a second."""

LEFT_OUT = ("gguf",)
"""Its converter is fetched by who wants it, so the cover would depend on the machine; tests/export/test_gguf.py and `make walk` have it."""


def _allowed(several: bool) -> list[dict[str, str]]:
    """The cells on a CPU that are not refused, in one process or in several, with an architecture in place of the kind of model."""
    found = []
    for cell in combinations.cells(device="cpu"):
        if (cell["sharding"] != "none") is not several or combinations.refusal_of(cell) or cell["export"] in LEFT_OUT:
            continue
        if several and (any(cell[axis] not in names for axis, names in SHARDED.items()) or cell["export"] in FROM_SAVED):
            continue
        found += [{**{k: v for k, v in cell.items() if k not in ("model", "device")}, "model": a} for a in ARCHITECTURES[cell["model"]]]
    return found


def _cases(several: bool) -> list[Case]:
    chosen = cover(_allowed(several), cost=lambda cell: SECONDS.get(cell["export"], 1.0))
    return sorted((_case(cell) for cell in chosen), key=lambda case: case.name)


def _case(cell: Mapping[str, str]) -> Case:
    return Case(cell["task"], cell["method"], cell["sharding"], cell["precision"], cell["model"], (cell["export"],))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models, one folder an architecture."""
    folder = tmp_path_factory.mktemp("walk-models")
    for names in ARCHITECTURES.values():
        for name in names:
            model_folder(name, folder)
    return folder


@pytest.mark.parametrize("case", _cases(several=False), ids=lambda case: case.name)
def test_one_process(case: Case, models: Path, tmp_path: Path) -> None:
    assert walk(case, models, tmp_path) == dict.fromkeys(case.exports)


@pytest.mark.parametrize("case", _cases(several=True), ids=lambda case: case.name)
def test_two_processes(case: Case, models: Path, tmp_path: Path) -> None:
    with forked_processes():
        assert walk(case, models, tmp_path) == dict.fromkeys(case.exports)


def test_files_that_differ_from_those_of_one_process_are_seen(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("chat", "lora", "ddp", "fp32", "llama", ("adapter",))
    require_same = walk_case.require_same_files

    def renamed(run: Path, *rest: Any) -> None:
        file = Run(run).learned / "adapter_model.safetensors"
        file.rename(file.with_name("model.safetensors"))
        require_same(run, *rest)

    monkeypatch.setattr(walk_case, "require_same_files", renamed)
    with forked_processes():
        problem = walk(case, models, tmp_path)["adapter"]
    assert problem is not None
    assert "ddp saved other files or tensors than one process: adapter_model.safetensors, model.safetensors" in problem


def test_a_case_that_is_wrong_is_said_to_be(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk can fail: an adapter that is changed after training is neither the model that was measured nor the one that is exported."""
    import torch
    from safetensors.torch import load_file, save_file

    from tunery.methods import lora

    load = lora.load

    def damaged(model: Any, folder: Path) -> None:
        load(model, folder)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                with torch.no_grad():
                    parameter.add_(1.0)

    case = Case("chat", "lora", "none", "fp32", "llama", ("merged",))
    monkeypatch.setattr(lora, "load", damaged)
    problem = walk(case, models, tmp_path / "load")["merged"]
    assert problem is not None
    assert "computes something else" in problem
    monkeypatch.undo()

    save = lora.save

    def zeroed(model: Any, options: Any, folder: Path, base: str) -> None:
        save(model, options, folder, base)
        file = folder / "adapter_model.safetensors"
        save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})

    monkeypatch.setattr(lora, "save", zeroed)
    problem = walk(case, models, tmp_path / "save")["merged"]
    assert problem is not None
    assert "computes something else" in problem
