"""Recipes from what other tools' users wrote: one file a tool, found by name.

A tool's file holds `SUMMARY`, `MARKS` (keys of a configuration that this tool's files have and the others' have not), `recognises`
and `convert`. What a recipe cannot say is handed back with its reason; nothing is dropped without a word (`_reader.py`).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from tunery.errors import InputError
from tunery.importers._draft import finished
from tunery.importers._file import load
from tunery.importers._reader import LeftOver, Reader
from tunery.recipe import from_mapping

__all__ = ["Imported", "Importer", "LeftOver", "detect", "get", "names", "read"]


@dataclass(frozen=True)
class Imported:
    """A recipe as `tunery.recipe.from_mapping` reads it, what of the file is not in it, and what to know about it."""

    tool: str
    recipe: dict[str, Any]
    left_over: tuple[LeftOver, ...]
    notes: tuple[str, ...]


class Importer(Protocol):
    """What every tool's file offers."""

    SUMMARY: str

    def recognises(self, mapping: Mapping[str, Any]) -> int:
        """How many signs there are that this tool wrote the file; 0 for none."""

    def convert(self, reader: Reader) -> dict[str, Any]:
        """The recipe. Raises InputError for a job that Tunery has no task for, such as training a reward model."""


def names() -> list[str]:
    """Every tool whose files can be read."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Importer:
    """The importer of that tool. Raises InputError naming the nearest."""
    if name not in names():
        near = difflib.get_close_matches(name.lower(), names(), n=1, cutoff=0.4)
        raise InputError(f"--from {name}: not known; " + (f"did you mean `{near[0]}`?" if near else f"known: {', '.join(names())}"))
    return cast(Importer, importlib.import_module(f"{__name__}.{name}"))


def detect(mapping: Mapping[str, Any], source: str) -> str:
    """The tool that wrote a configuration. Raises InputError when none or more than one can be meant."""
    scores = {name: get(name).recognises(mapping) for name in names()}
    best = max(scores.values())
    found = [name for name, score in scores.items() if score == best]
    if not best:
        raise InputError(f"{source}: no sign of the tool that wrote it; name it with --from: {', '.join(names())}")
    if len(found) > 1:
        raise InputError(f"{source}: this can be of {' or of '.join(found)}; name one with --from")
    return found[0]


def read(path: str | Path, tool: str | None = None) -> Imported:
    """The recipe in another tool's file. `tool` None: found out from the keys.

    The recipe is valid in form; that its model and data exist is not looked up. Raises InputError.
    """
    path = Path(path)
    mapping = load(path)
    tool = tool or detect(mapping, str(path))
    importer = get(tool)
    reader = Reader(mapping, str(path), path.resolve().parent)
    recipe = finished(importer.convert(reader))
    from_mapping(recipe, source=str(path))
    return Imported(tool, recipe, reader.left_over(), reader.notes)
