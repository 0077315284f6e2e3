"""DeepSpeed's settings: a recipe's choices, and a user's own JSON where it does not contradict them.

Where the same thing is set in both, the recipe is what counts: a key of the JSON that would change the result is refused with its value and
the recipe's; one that says the same as the recipe, or "auto", is taken out. What the JSON alone sets (buckets, thresholds, offloading to
disk, logging) is handed to DeepSpeed as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tunery.errors import InputError, MissingExtraError
from tunery.sharding import ProcessOptions

AUTO = "auto"
_UNUSED = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
"""How a step is cut into batches: our packs decide that, and the result does not depend on it."""
_FOREIGN = {
    "amp": "precision is train.precision",
    "fp16": "precision is train.precision, which has no float16",
    "torch_autocast": "precision is train.precision",
    "data_types": "gradients are added up in float32",
    "communication_data_type": "gradients are exchanged in float32",
    "prescale_gradients": "gradients are summed",
    "gradient_predivide_factor": "gradients are summed",
    "gradient_allreduce_op": "gradients are summed",
    "sparse_gradients": "gradients are dense",
    "data_efficiency": "the rows of a step are the recipe's",
    "curriculum_learning": "the rows of a step are the recipe's",
    "progressive_layer_drop": "every layer is trained in every step",
    "compression_training": "compression is another training",
    "quantize_training": "quantised training is the method's choice",
    "elasticity": "the number of processes is sharding.processes",
    "autotuning": "a run has fixed settings",
    "tensor_parallel": "weights are divided by ZeRO alone",
    "sequence_parallel_size": "rows are not divided",
    "pipeline": "layers are not divided over processes",
}
"""Keys that would make another training of it, with what Tunery does."""


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


def read_own(options: DeepSpeedOptions) -> dict[str, Any]:
    """The user's own configuration, read from its file where it is one. Raises InputError when it cannot be read."""
    if not isinstance(options.config, str):
        return dict(options.config or {})
    file = Path(options.config)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"sharding.config: there is no file {file}; name a DeepSpeed configuration in JSON, or leave the key out"
        ) from None
    except (OSError, ValueError) as e:
        raise InputError(f"sharding.config: {file} is not readable JSON ({e}); mend it") from None
    if not isinstance(content, dict):
        raise InputError(f"sharding.config: {file} holds no JSON object; a DeepSpeed configuration is one")
    return content


def settle(options: DeepSpeedOptions, stage: int, train: Any) -> tuple[DeepSpeedOptions, list[str]]:
    """The options with the user's configuration in place of its file's name, and what is to be said about it.

    train: the resolved recipe's `train`. Raises InputError for what contradicts the recipe, or what DeepSpeed does not know.
    """
    if options.config is None:
        return options, []
    own = read_own(options)
    where = f"sharding.config: {options.config}" if isinstance(options.config, str) else "sharding.config"
    unused = check_own(own, stage, train, options.offload, where)
    _check_known(own, where)
    notes = [f"sharding.config: {', '.join(f'`{key}`' for key in unused)} has no effect: how a step is cut into batches changes nothing"]
    return options.model_copy(update={"config": own}), notes if unused else []


def _check_known(own: Mapping[str, Any], source: str) -> None:
    """Raise InputError for a key of `zero_optimization`, or a value, that DeepSpeed does not take."""
    import sys

    from pydantic import ValidationError

    with redirect_stdout(sys.stderr):  # it logs there, and standard output is for results
        from tunery.sharding._import_deepspeed import import_deepspeed

        import_deepspeed()
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**_without_auto(own.get("zero_optimization") or {}))
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        key = ".".join(str(part) for part in ("zero_optimization", *first["loc"]))
        raise InputError(
            f"{source}: DeepSpeed does not take `{key}`: {first['msg'].lower()}; see its configuration's documentation"
        ) from None


def check_own(own: Mapping[str, Any], stage: int, train: Any, offload: str, source: str = "sharding.config") -> list[str]:
    """Raise InputError, in one sentence, for what in `own` contradicts the recipe; what it has that has no effect here.

    train: the resolved recipe's `train`.
    """
    wrong = list(_contradictions(own, stage, train, offload))
    if wrong:
        raise InputError(
            f'{source}: what the recipe decides cannot be set otherwise here: {"; ".join(wrong)}; take these keys out, or write "auto"'
        )
    return [key for key in _UNUSED if own.get(key, AUTO) != AUTO]


def _contradictions(own: Mapping[str, Any], stage: int, train: Any, offload: str) -> Iterator[str]:
    zero = own.get("zero_optimization") or {}
    if not isinstance(zero, Mapping):
        yield "`zero_optimization` is not an object"
        return
    if _set(zero, "stage") and zero["stage"] != stage:
        yield f"`zero_optimization.stage` is {zero['stage']}, and the recipe's stage is zero{stage}"
    for key in ("offload_optimizer", "offload_param"):
        device = (zero.get(key) or {}).get("device", "none") if isinstance(zero.get(key), Mapping) else "none"
        if device not in ("none", AUTO) and device != "nvme" and offload == "none":
            yield f"`zero_optimization.{key}.device` is {device}, and the recipe's offload is none (write `offload: cpu`)"
    if _set(own, "train_batch_size") and own["train_batch_size"] != train.rows_per_step:
        size = f"rows_per_step {train.rows_per_step}" if train.rows_per_step else f"tokens_per_step {train.tokens_per_step}"
        yield f"`train_batch_size` is {own['train_batch_size']}, and a step is the recipe's {size}"
    if _set(own, "gradient_clipping") and own["gradient_clipping"] != (train.clip or 0):
        yield f"`gradient_clipping` is {own['gradient_clipping']}, and train.clip is {train.clip}"
    yield from _optimizer(own.get("optimizer"), train)
    scheduler = own.get("scheduler")
    if scheduler and scheduler != AUTO and not _all_auto(scheduler):
        yield f"`scheduler` is {scheduler.get('type', '?')}, and train.schedule is {train.schedule}"
    if _on(own.get("bf16")) and train.precision != "bf16":
        yield f"`bf16` is on, and train.precision is {train.precision}"
    for key, ours in _FOREIGN.items():
        if key in own and own[key] not in (AUTO, None, False) and not (isinstance(own[key], Mapping) and not _on(own[key])):
            yield f"`{key}` is set, and {ours}"


def _optimizer(written: Any, train: Any) -> Iterator[str]:
    if not written or written == AUTO:
        return
    if str(written.get("type", "AdamW")).lower() not in ("adamw", "adam", AUTO):
        yield f"`optimizer.type` is {written['type']}, and train.optimizer is {train.optimizer}"
    ours = {"lr": train.learning_rate, "weight_decay": train.weight_decay, "betas": [0.9, 0.999], "eps": 1e-8}
    for key, value in (written.get("params") or {}).items():
        same = list(value) == ours[key] if key == "betas" and value != AUTO else key in ours and value == ours[key]
        if value != AUTO and not same and key not in ("torch_adam", "adam_w_mode", "bias_correction"):
            yield f"`optimizer.params.{key}` is {value}, and the recipe's is {ours.get(key, 'not set')}"
    for key, needed in (("adam_w_mode", True), ("bias_correction", True)):
        if (written.get("params") or {}).get(key, needed) not in (needed, AUTO):
            yield f"`optimizer.params.{key}` is {written['params'][key]}, and train.optimizer is AdamW"


def whole_config(own: Mapping[str, Any], stage: int, offload: str, clip: float | None, device: str, learned: int) -> dict[str, Any]:
    """What DeepSpeed is given. learned: the number of trained values."""
    config = {
        k: v for k, v in _without_auto(own).items() if k not in (*_UNUSED, *_FOREIGN, "optimizer", "scheduler", "train_batch_size", "bf16")
    }
    zero = dict(config.get("zero_optimization") or {})
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


def _set(mapping: Mapping[str, Any], key: str) -> bool:
    return mapping.get(key, AUTO) not in (AUTO, None)


def _on(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("enabled", True) not in (False, AUTO) and not _all_auto(part)


def _all_auto(part: Any) -> bool:
    if isinstance(part, Mapping):
        return all(_all_auto(value) for key, value in part.items() if key != "type")
    return part == AUTO


def _without_auto(part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in part.items()
        if value is not None and value != AUTO
    }
