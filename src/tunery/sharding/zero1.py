"""ZeRO stage 1: the optimiser's state is divided over the processes.

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"; by DeepSpeed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunery.sharding import _deepspeed_config
from tunery.sharding._deepspeed_config import DeepSpeedOptions, require_deepspeed

if TYPE_CHECKING:
    from tunery.sharding._engine import Engine

SUMMARY = "the optimiser's state divided over the processes, by DeepSpeed"
STAGE = 1


class Options(DeepSpeedOptions):
    """Processes, offload, and settings of DeepSpeed's own."""


def require() -> None:
    """Raise MissingExtraError unless DeepSpeed is installed."""
    require_deepspeed("zero1")


def settle(options: Options, train: Any) -> tuple[DeepSpeedOptions, list[str]]:
    """See `_deepspeed_config.settle`."""
    return _deepspeed_config.settle(options, STAGE, train)


def engine(options: Options) -> Engine:
    """See `_deepspeed.DeepSpeed`."""
    from tunery.sharding._deepspeed import DeepSpeed

    return DeepSpeed(STAGE, options)
