"""Kinds of work: one file each, found by name.

A task file says which kinds of row it takes (`ROWS`), gives the training loss as `loss(logits, batch) → (sum, count)`, and says
whether a row has an answer that can be generated and compared (`ANSWERS`).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING, Protocol, cast

from tunery.errors import InputError

if TYPE_CHECKING:
    import torch


class Task(Protocol):
    """What every task file offers."""

    SUMMARY: str
    ROWS: tuple[str, ...]
    ANSWERS: bool

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of the losses, in nats, and the sum of the weights; the mean is left to the caller, who knows the whole step."""


def names() -> list[str]:
    """Every task that a recipe may name."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Task:
    """The task of that name. Raises InputError naming the nearest."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
        raise InputError(f"task `{name}` is not known; " + (f"did you mean `{near[0]}`?" if near else f"known: {', '.join(names())}"))
    return cast(Task, importlib.import_module(f"{__name__}.{name}"))
