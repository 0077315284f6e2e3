"""Which cells have been run for real: `make walk` writes `walked.json`, and only what stands there as passed is called "yes".

A cell is *walked* when, on a tiny random model of each architecture of its kind, a recipe with exactly its seven choices was trained for a
few steps through `tunery.finetune`, what was learned changed the model, was loaded again and computed the same, in PEFT or transformers
too, and the export was made with its proof. Nothing is inferred from a neighbouring cell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal

ARCHITECTURES: Mapping[str, tuple[str, ...]] = {"decoder": ("llama", "phi3"), "encoder": ("bert",)}
"""The architectures on which a cell of each kind of model is walked."""

Status = Literal["yes", "fails", "untested"]

_KEY = ("task", "method", "sharding", "precision", "device")


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
    found = [runs.get(key_of(cell, a), {}).get(cell["export"], "") for a in ARCHITECTURES[cell["model"]]]
    failed = [f.removeprefix("failed: ") for f in found if f.startswith("failed: ")]
    if failed:
        return "fails", failed[0]
    return ("yes", min(found, key=_numbers)) if all(found) else ("untested", "")


def _numbers(version: str) -> list[int]:
    return [int(n) if n.isdigit() else 0 for n in version.split(".")]
