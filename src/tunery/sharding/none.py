"""No sharding: one process holds and computes everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    from tunery.sharding._engine import Engine

SUMMARY = "one process"


class Options(_Options):
    """There is nothing to choose."""


def require() -> None:
    """Nothing is needed."""


def engine(options: Options) -> Engine:
    """See `_engine.Engine`."""
    from tunery.sharding._engine import Engine

    return Engine()
