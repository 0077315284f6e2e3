"""Forms in which a trained model is handed out: one file each, found by name; each with a proof that it is the same model.

An exporter's file holds `SUMMARY`, `Options` (what a recipe may set) and the function `export` of the `Exporter` protocol. The other
files of this room serve the exporters.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from tunery.errors import InputError
from tunery.recipe import Options

if TYPE_CHECKING:
    from tunery.export.source import ExportSource


class Exporter(Protocol):
    """What every exporter's file offers."""

    SUMMARY: str
    Options: type[Options]

    def require(self, options: Any = None) -> None:
        """Raise MissingExtraError when what this export needs is not installed: known before hours of training, not after."""

    def export(self, source: ExportSource, out: Path, options: Any) -> dict[str, Any]:
        """Write the folder `out`, whole and proven or not at all; the entry for report.json.

        Raises ProofError with the figures when it is not the same model, InputError when `out` is in use, RunError when it cannot be made.
        """


def names() -> list[str]:
    """Every export that a recipe may name."""
    modules = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if hasattr(importlib.import_module(f"{__name__}.{name}"), "export"))


def get(name: str) -> Exporter:
    """The exporter of that name. Raises InputError naming the nearest."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        raise InputError(f"export `{name}` is not known; " + (f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"))
    return cast(Exporter, importlib.import_module(f"{__name__}.{name}"))
