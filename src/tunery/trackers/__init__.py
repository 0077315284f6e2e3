"""Services that follow a run while it trains: one file each, found by name.

A tracker is an observer: it reads the lines that the loop writes into metrics.jsonl, and the report at the end. It never changes a run,
and one that breaks down is said once in the log, and dropped (`observers.py`).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from tunery.errors import InputError
from tunery.recipe import Options, Recipe
from tunery.run import Run


class Tracking(Protocol):
    """A run under way at one tracker. Every method may raise whatever the tracker's library raises."""

    id: str
    """What the tracker calls this run; a resumed run is begun again with it."""

    def steps(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Lines of metrics.jsonl, oldest first: `step` (from 1) and numbers. A resumed run may bring a step that is known already."""

    def end(self, report: Mapping[str, Any]) -> None:
        """report.json, when the run has succeeded, failed or was cancelled. A cancelled run may be begun again."""


class Tracker(Protocol):
    """What every tracker's file offers."""

    SUMMARY: str
    Options: type[Options]

    def require(self, options: Any) -> None:
        """Raise MissingExtraError when the library is not installed, InputError when a setting is missing: known before training."""

    def begin(self, run: Run, recipe: Recipe, options: Any, known: str | None) -> Tracking:
        """Open the run at the tracker: a new one, or the one whose id is `known`."""


def names() -> list[str]:
    """Every tracker that a recipe may name."""
    modules = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if hasattr(importlib.import_module(f"{__name__}.{name}"), "require"))


def get(name: str) -> Tracker:
    """The tracker of that name. Raises InputError naming the nearest."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        raise InputError(f"track: `{name}` is not known; " + (f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"))
    return cast(Tracker, importlib.import_module(f"{__name__}.{name}"))
