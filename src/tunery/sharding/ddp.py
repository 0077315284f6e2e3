"""Distributed data parallel: every process holds the whole model and its optimiser, and computes a part of each step's rows.

Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training". It saves time, not memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunery.sharding import ProcessOptions

if TYPE_CHECKING:
    from tunery.sharding._engine import Engine

SUMMARY = "several processes, each with the whole model: faster, no memory saved"


class Options(ProcessOptions):
    """`processes` alone."""


def require() -> None:
    """Nothing is needed but torch."""


def engine(options: Options) -> Engine:
    """See `_replicated.Replicated`."""
    from tunery.sharding._replicated import Replicated

    return Replicated()
