"""Fully sharded data parallel, by torch's own `fully_shard` (FSDP2): weights, gradients and the optimiser's state are divided.

Zhao et al. 2023, "PyTorch FSDP". A layer's weights are whole only while it is computed, forwards and backwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tunery.sharding import ProcessOptions

if TYPE_CHECKING:
    from tunery.sharding._engine import Engine

SUMMARY = "weights, gradients and optimiser state divided over the processes, by torch: the least memory, nothing to install"


class Options(ProcessOptions):
    """Processes, and where what is divided lies."""

    offload: Literal["none", "cpu"] = "none"
    """`cpu`: a process's part of the weights and the optimiser's state lies in main memory, not on the GPU, where only a layer at a time is."""


def require() -> None:
    """Nothing is needed but torch."""


def engine(options: Options) -> Engine:
    """See `_fully_sharded.FullySharded`."""
    from tunery.sharding._fully_sharded import FullySharded

    return FullySharded(offload=options.offload == "cpu")
