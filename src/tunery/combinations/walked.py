"""Which cells have been run for real: `make walk` writes `walked.json`, and only what stands there as passed is called "yes".

A cell is *walked* when, on a tiny random model of each of its architectures, a recipe with exactly its seven choices was trained for a
few steps through `tunery.finetune`, what was learned changed the model, was loaded again and computed the same, in PEFT or transformers
too, and the export was made with its proof. Of several processes the run must also leave the very files that one process leaves, tensor for
tensor in name, type and shape; the exports that take long (`FROM_SAVED`) read those files alone, so they are made from the run of one
process, and a cell of several counts when both halves were walked. Nothing else is inferred from a neighbouring cell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal

from tunery import combinations

ARCHITECTURES: Mapping[str, tuple[str, ...]] = {"decoder": ("llama", "phi3"), "encoder": ("bert",)}
"""The architectures on which a cell of each kind of model is walked: one process on each of them, several processes on one, in turn."""

FROM_SAVED = ("onnx", "gguf")
"""Exports that are walked in one process only: they are made of what a run has saved, and see nothing of the processes that saved it."""

Status = Literal["yes", "fails", "untested"]

_KEY = ("task", "method", "sharding", "precision", "device")


def architectures_of(cell: Mapping[str, str]) -> tuple[str, ...]:
    """Those that a cell is walked on. What several processes add sees tensors and no architecture, so neighbouring cells take turns."""
    names = ARCHITECTURES[cell["model"]]
    if cell["sharding"] == "none":
        return names
    known = combinations.values()
    turn = sum(known[axis].index(cell[axis]) for axis in ("method", "task", "sharding", "precision"))
    return (names[turn % len(names)],)


def key_of(cell: Mapping[str, str], architecture: str) -> str:
    """The name of one training run of the walk: `chat lora none fp32 cpu llama`."""
    return " ".join([*(cell[axis] for axis in _KEY), architecture])


@cache
def walked() -> Mapping[str, Mapping[str, str]]:
    """Run → export → the version of Tunery that it passed with, or `failed: ` and the sentence that it ended with."""
    runs: dict[str, dict[str, str]] = json.loads(resources.files(__package__).joinpath("walked.json").read_text(encoding="utf-8"))["runs"]
    return runs


def status_of(cell: Mapping[str, str], known: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[Status, str]:
    """(`yes`, the oldest version that it was walked with), (`fails`, why), or (`untested`, "")."""
    runs = walked() if known is None else known
    found = [said for half in _halves(cell) for said in _said(half, runs)]
    failed = [f.removeprefix("failed: ") for f in found if f.startswith("failed: ")]
    if failed:
        return "fails", failed[0]
    return ("yes", min(found, key=_numbers)) if all(found) else ("untested", "")


def _halves(cell: Mapping[str, str]) -> list[dict[str, str]]:
    """The cells whose runs are this cell's walk: itself; of several processes with a long export, the training and the export."""
    if cell["export"] in FROM_SAVED and cell["sharding"] != "none":
        return [{**cell, "export": "merged"}, {**cell, "sharding": "none"}]
    return [dict(cell)]


def _said(cell: Mapping[str, str], runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [runs.get(key_of(cell, a), {}).get(cell["export"], "") for a in architectures_of(cell)]


def _numbers(version: str) -> list[int]:
    return [int(n) if n.isdigit() else 0 for n in version.split(".")]
