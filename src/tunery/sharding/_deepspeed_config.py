"""DeepSpeed's settings: a recipe's choices, and a user's own JSON where it does not contradict them (see `_deepspeed_own`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Literal

from tunery.errors import MissingExtraError
from tunery.sharding import ProcessOptions
from tunery.sharding._deepspeed_own import DECIDED, DECIDED_ZERO, check_own, read_own, without_auto


class DeepSpeedOptions(ProcessOptions):
    """What zero1, zero2 and zero3 let a recipe set."""

    offload: Literal["none", "cpu"] = "none"
    """`cpu`: the optimiser's state, and with zero3 the weights, lie in main memory, and AdamW runs there; slower, for what a GPU cannot hold."""
    config: str | dict[str, Any] | None = None
    """A DeepSpeed configuration of your own: a JSON file, or its content. What contradicts the recipe is refused."""


def require_deepspeed(name: str) -> None:
    """Raise MissingExtraError unless a DeepSpeed that works is installed: before 0.19 it does not leave out a float32 step that is no number."""
    try:
        version = metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        raise MissingExtraError(
            f"sharding {name} needs DeepSpeed, which is not installed; install with: pip install 'tunery[deepspeed]'"
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < (0, 19):
        raise MissingExtraError(f"sharding {name} needs DeepSpeed 0.19, this is {version}; install with: pip install 'tunery[deepspeed]'")


def settle(options: DeepSpeedOptions, stage: int, train: Any) -> tuple[DeepSpeedOptions, list[str]]:
    """The options with the user's configuration in place of its file's name, and what is to be said about it.

    train: the resolved recipe's `train`. Raises InputError for what contradicts the recipe, or what DeepSpeed does not know.
    """
    if options.config is None:
        return options, []
    own = read_own(options.config)
    where = f"sharding.config: {options.config}" if isinstance(options.config, str) else "sharding.config"
    notes = check_own(own, stage, train, options.offload, where)
    return options.model_copy(update={"config": own}), notes


def whole_config(own: Mapping[str, Any], stage: int, offload: str, clip: float | None, device: str, learned: int) -> dict[str, Any]:
    """What DeepSpeed is given. learned: the number of trained values."""
    config = {key: value for key, value in without_auto(own).items() if key not in DECIDED}
    zero = {key: value for key, value in (config.get("zero_optimization") or {}).items() if key not in DECIDED_ZERO}
    # DeepSpeed's own size, 500 million values, is allocated whole, and an adapter has a hundredth of that.
    zero.setdefault("reduce_bucket_size", max(1, min(500_000_000, learned)))
    zero["stage"] = stage
    if offload == "cpu":
        pinned = device == "cuda"
        zero["offload_optimizer"] = {"pin_memory": pinned, **(zero.get("offload_optimizer") or {}), "device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"pin_memory": pinned, **(zero.get("offload_param") or {}), "device": "cpu"}
    return {
        "steps_per_print": 1_000_000_000,
        **config,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip or 0.0,
        "zero_allow_untested_optimizer": True,
        # torch's AdamW on the CPU too: DeepSpeed's own has to be compiled on the machine that trains.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
