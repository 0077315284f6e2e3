"""A user's own DeepSpeed JSON: reading it, and naming every key that contradicts the recipe.

Where the same thing is set in both, the recipe is what counts: a key of the JSON that would change the result is refused with its value and
the recipe's; one that says the same as the recipe, or "auto", is taken out. What the JSON alone sets (buckets, thresholds, offloading to
disk, logging) is handed to DeepSpeed as it is. Keys and their defaults: DeepSpeed's "Configuration JSON" page.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from tunery.errors import InputError

AUTO = "auto"
UNUSED = {
    "train_micro_batch_size_per_gpu": "how a step is cut into batches changes nothing",
    "gradient_accumulation_steps": "how a step is cut into batches changes nothing",
    "managed_gradient_accumulation": "how a step is cut into batches changes nothing",
    "activation_checkpointing": "train.gradient_checkpointing decides",
    "checkpoint": "checkpoints have one layout for any number of processes",
    "dataloader_drop_last": "the rows of a step are the recipe's",
}
"""Keys that change nothing here, and why."""
FOREIGN = {
    "amp": "precision is train.precision",
    "fp16": "precision is train.precision, which has no float16",
    "torch_autocast": "precision is train.precision",
    "data_types": "gradients are added up in float32",
    "communication_data_type": "gradients are exchanged in float32",
    "seq_parallel_communication_data_type": "rows are not divided",
    "prescale_gradients": "gradients are summed",
    "gradient_predivide_factor": "gradients are summed",
    "gradient_allreduce_op": "gradients are summed",
    "sparse_gradients": "gradients are dense",
    "sparse_attention": "attention is the model's own",
    "data_efficiency": "the rows of a step are the recipe's",
    "curriculum_learning": "the rows of a step are the recipe's",
    "progressive_layer_drop": "every layer is trained in every step",
    "compression_training": "compression is another training",
    "quantize_training": "quantised training is the method's choice",
    "weight_quantization": "quantised weights are the method's choice",
    "elasticity": "the number of processes is sharding.processes",
    "autotuning": "a run has fixed settings",
    "tensor_parallel": "weights are divided by ZeRO alone",
    "expert_parallel": "weights are divided by ZeRO alone",
    "sequence_parallel_size": "rows are not divided",
    "pipeline": "layers are not divided over processes",
    "hybrid_engine": "nothing is generated while training",
    "zero_force_ds_cpu_optimizer": "AdamW on the CPU is torch's, which needs no compiler",
}
"""Keys that would make another training of it, with what Tunery does."""
_FOREIGN_ZERO = {
    "zero_quantized_weights": "weights are exchanged as they are",
    "zero_quantized_nontrainable_weights": "weights are exchanged as they are",
    "zero_quantized_gradients": "gradients are exchanged in float32",
    "zenflow": "every weight is changed in every step",
}
"""The same inside `zero_optimization`."""
_SAME: Mapping[str, tuple[Any, ...]] = {
    "communication_data_type": ("fp32",),
    "gradient_predivide_factor": (1, 1.0),
    "sequence_parallel_size": (1,),
    "data_types": ({"grad_accum_dtype": "fp32"}, {"grad_accum_dtype": AUTO}),
}
"""Values of foreign keys that say what Tunery does anyway."""
_BF16 = ("bf16", "bfloat16")
"""DeepSpeed reads both names."""
_OLD_OFFLOAD = {"cpu_offload": "offload_optimizer", "cpu_offload_param": "offload_param"}
"""DeepSpeed's deprecated switches: true is `device: cpu`."""
DECIDED = (*UNUSED, *FOREIGN, *_BF16, "optimizer", "scheduler", "train_batch_size")
"""Keys that DeepSpeed is not given, since the recipe says them."""
DECIDED_ZERO = (*_OLD_OFFLOAD, *_FOREIGN_ZERO)


def read_own(config: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration, read from its file where `config` names one. Raises InputError when it cannot be read."""
    if not isinstance(config, str):
        return dict(config or {})
    file = Path(config)
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


def check_own(own: Mapping[str, Any], stage: int, train: Any, offload: str, source: str = "sharding.config") -> list[str]:
    """What in `own` has no effect here, a sentence each. train: the resolved recipe's `train`.

    Raises InputError: one sentence with all that contradicts the recipe, or what DeepSpeed does not know.
    """
    wrong = list(_contradictions(own, stage, train, offload))
    if wrong:
        raise InputError(
            f'{source}: what the recipe decides cannot be set otherwise here: {"; ".join(wrong)}; take these keys out, or write "auto"'
        )
    _check_known(own, source)
    return [f"sharding.config: `{key}` has no effect: {why}" for key, why in UNUSED.items() if is_set(own, key) and own[key] is not False]


def without_auto(part: Mapping[str, Any]) -> dict[str, Any]:
    """What is really set in it, and in the objects inside."""
    return {
        key: without_auto(value) if isinstance(value, Mapping) else value
        for key, value in part.items()
        if value is not None and value != AUTO
    }


def is_set(mapping: Mapping[str, Any], key: str) -> bool:
    return mapping.get(key, AUTO) not in (AUTO, None)


def _contradictions(own: Mapping[str, Any], stage: int, train: Any, offload: str) -> Iterator[str]:
    parts = {}
    for key in ("zero_optimization", "optimizer", "scheduler", *_BF16):
        parts[key] = own[key] if is_set(own, key) else {}
        if not isinstance(parts[key], Mapping):
            yield f"`{key}` is {parts[key]}, and DeepSpeed takes an object there"
            parts[key] = {}
    yield from _of_zero(parts["zero_optimization"], stage, offload)
    if is_set(own, "train_batch_size") and own["train_batch_size"] != train.rows_per_step:
        size = f"rows_per_step {train.rows_per_step}" if train.rows_per_step else f"tokens_per_step {train.tokens_per_step}"
        yield f"`train_batch_size` is {own['train_batch_size']}, and a step is the recipe's {size}"
    if is_set(own, "gradient_clipping") and own["gradient_clipping"] != (train.clip or 0):
        yield f"`gradient_clipping` is {own['gradient_clipping']}, and train.clip is {train.clip}"
    yield from _of_optimizer(parts["optimizer"], train)
    scheduler = parts["scheduler"]
    if scheduler and not _all_auto(scheduler):
        yield f"`scheduler` is {scheduler.get('type', '?')}, and train.schedule is {train.schedule}"
    for key in _BF16:
        enabled = parts[key].get("enabled", AUTO)
        if enabled != AUTO and bool(enabled) != (train.precision == "bf16"):
            yield f"`{key}` is {'on' if enabled else 'off'}, and train.precision is {train.precision}"
    for key, ours in FOREIGN.items():
        if _asks(own, key) and own[key] not in _SAME.get(key, ()):
            yield f"`{key}` is set, and {ours}"


def _of_zero(zero: Mapping[str, Any], stage: int, offload: str) -> Iterator[str]:
    if is_set(zero, "stage") and zero["stage"] != stage:
        yield f"`zero_optimization.stage` is {zero['stage']}, and the recipe's stage is zero{stage}"
    said = {old: (new, "cpu") for old, new in _OLD_OFFLOAD.items() if zero.get(old) is True}
    for key in _OLD_OFFLOAD.values():
        part = zero.get(key)
        if isinstance(part, Mapping) and is_set(part, "device"):
            said[f"{key}.device"] = (key, part["device"])
    for key, (what, device) in said.items():
        written = f"`zero_optimization.{key}` is {'true' if key in _OLD_OFFLOAD else device}, and"
        if what == "offload_param" and stage < 3 and device != "none":
            yield f"{written} the recipe's stage zero{stage} divides no weights (write `stage: zero3`)"
        elif offload == "cpu" and device != "cpu":
            yield f"{written} the recipe's offload is cpu"
        elif offload == "none" and device == "cpu":
            yield f"{written} the recipe's offload is none (write `offload: cpu`)"
    for key, ours in _FOREIGN_ZERO.items():
        if _asks(zero, key):
            yield f"`zero_optimization.{key}` is set, and {ours}"


def _of_optimizer(written: Mapping[str, Any], train: Any) -> Iterator[str]:
    if str(written.get("type", "AdamW")).lower() not in ("adamw", "adam", AUTO):
        yield f"`optimizer.type` is {written['type']}, and train.optimizer is {train.optimizer}"
    ours = {"lr": train.learning_rate, "weight_decay": train.weight_decay, "betas": [0.9, 0.999], "eps": 1e-8}
    needed = {"adam_w_mode": True, "bias_correction": True}
    params = written["params"] if is_set(written, "params") else {}
    if not isinstance(params, Mapping):
        yield f"`optimizer.params` is {params}, and DeepSpeed takes an object there"
        return
    for key, value in params.items():
        if key in needed and value not in (True, AUTO, None):
            yield f"`optimizer.params.{key}` is {value}, and train.optimizer is AdamW"
        # torch_adam chooses between implementations of the same.
        elif key not in (*needed, "torch_adam") and value not in (AUTO, None):
            value = list(value) if isinstance(value, tuple) else value
            if key not in ours or value != ours[key]:
                yield f"`optimizer.params.{key}` is {value}, and the recipe's is {ours.get(key, 'not set')}"


def _check_known(own: Mapping[str, Any], source: str) -> None:
    """Raise InputError for a key of `zero_optimization`, or a value, that DeepSpeed does not take, and for a slip in a key that counts here."""
    import sys

    from pydantic import ValidationError

    with redirect_stdout(sys.stderr):  # it logs there, and standard output is for results
        from tunery.sharding._import_deepspeed import import_deepspeed

        import_deepspeed()
        from deepspeed.runtime import constants
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = (*DECIDED, "zero_optimization", "gradient_clipping")
    its_own = {value for value in vars(constants).values() if isinstance(value, str)}
    for key in own:
        # DeepSpeed passes over a key that it does not know without a word.
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if near and key not in known and key not in its_own:
            raise InputError(f"{source}: DeepSpeed does not take `{key}`; did you mean `{near[0]}`?")
    try:
        DeepSpeedZeroConfig(**without_auto(own.get("zero_optimization") or {}))
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        key = ".".join(str(part) for part in ("zero_optimization", *first["loc"]))
        raise InputError(
            f"{source}: DeepSpeed does not take `{key}`: {first['msg'].lower()}; see its configuration's documentation"
        ) from None


def _asks(mapping: Mapping[str, Any], key: str) -> bool:
    """Whether a key is there and is not off."""
    value = mapping.get(key)
    if isinstance(value, Mapping):
        return value.get("enabled", True) not in (False, AUTO) and not _all_auto(value)
    return value not in (AUTO, None, False)


def _all_auto(part: Any) -> bool:
    if isinstance(part, Mapping):
        return all(_all_auto(value) for key, value in part.items() if key != "type")
    return part == AUTO
