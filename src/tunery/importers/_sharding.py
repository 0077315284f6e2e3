"""From DeepSpeed's and FSDP's configurations to a recipe's sharding."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunery.importers._file import beside
from tunery.importers._reader import Reader

_STAGES = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
OWN = "needless here because Tunery sets it from the recipe"
FSDP = {
    "backward_prefetch": OWN,
    "forward_prefetch": OWN,
    "cpu_ram_efficient_loading": OWN,
    "sync_module_states": OWN,
    "limit_all_gathers": OWN,
    "use_orig_params": OWN,
    "auto_wrap_policy": "needless here because each layer of the model is sharded",
    "transformer_layer_cls_to_wrap": "needless here because each layer of the model is sharded",
    "min_num_params": "needless here because each layer of the model is sharded",
    "state_dict_type": "needless here because weights leave as one safetensors file",
    "final_state_dict_type": "needless here because weights leave as one safetensors file",
    "version": "needless here because FSDP is version 2 here",
    "fsdp_version": "needless here because FSDP is version 2 here",
    "reshard_after_forward": "needless here because parameters are sharded again after each forward pass",
    "xla*": "no counterpart because there is no XLA device here",
}


def deepspeed(reader: Reader, key: str = "deepspeed") -> dict[str, Any] | None:
    """The sharding that a DeepSpeed configuration means: its mapping, the file it names (when it is there), or what the name says."""
    value = reader.peek(key)
    if isinstance(value, Mapping):
        return _inline(reader.inside(key))
    name = reader.text(key)
    if not name:
        return None
    content = beside(reader.folder, name)
    if content is not None:
        zero = content.get("zero_optimization") or {}
        stage = zero.get("stage", 0) if isinstance(zero, Mapping) else None
        if stage in _STAGES:
            reader.note(
                f"sharding: stage {stage} and its offload were read from {name}; name it as sharding.config to keep its other settings"
            )
            offload = any(
                (zero.get(k) or {}).get("device") == "cpu" for k in ("offload_optimizer", "offload_param") if _is_map(zero.get(k))
            )
            return _sharding(_STAGES[int(stage)], offload)
    found = re.search(r"(?:zero|(?<![a-z0-9])z)[_-]?(\d)(?![0-9])", Path(name).name.lower())
    if found and int(found[1]) in _STAGES:
        reader.note(f"sharding: taken from the name {name}, which is not beside the file")
        return _sharding(_STAGES[int(found[1])], "offload" in name.lower())
    reader.leave(key, f"no counterpart because {name} is not beside the file and its name says no ZeRO stage; write `sharding` yourself")
    return None


def _inline(reader: Reader) -> dict[str, Any] | None:
    zero = reader.inside("zero_optimization")
    stage = zero.integer("stage") or 0
    if stage not in _STAGES:
        raise zero.error("stage", f"ZeRO's stages are 0 to 3, not {stage}")
    offload = False
    for part in ("offload_optimizer", "offload_param"):
        device = zero.inside(part).text("device")
        if device == "nvme":
            zero.inside(part).leave("device", "no counterpart because offload goes to the main memory here (offload: cpu)")
        offload |= device in ("cpu", "nvme")
        zero.inside(part).leave_known({"*": OWN})
    zero.leave_known({"*": OWN})
    reader.leave_known({"fp16": "no counterpart because precision is bf16 or fp32 here", "*": OWN})
    return _sharding(_STAGES[stage], offload)


def fsdp(reader: Reader, recipe: dict[str, Any], key: str = "fsdp", config: str = "fsdp_config") -> dict[str, Any] | None:
    """The sharding that FSDP's keys mean, in the words of transformers, accelerate or Axolotl. It may ask for checkpointed activations."""
    value = reader.peek(key)
    words: list[str] = []
    if isinstance(value, bool):
        words = ["full_shard"] if reader.flag(key) else []
    elif isinstance(value, str):
        words = (reader.text(key) or "").replace(",", " ").split()
    elif value is not None:
        words = reader.texts(key)
    inner = reader.inside(config) if config in reader else None
    if not words and inner is None:
        return None
    offload = "offload" in words
    if inner is not None:
        for name in inner.mapping:
            plain = name.removeprefix("fsdp_")
            if plain == "offload_params":
                offload |= bool(inner.flag(name))
            elif plain == "activation_checkpointing":
                if inner.flag(name):
                    recipe["train"]["gradient_checkpointing"] = True
            elif plain == "sharding_strategy":
                words.append((inner.text(name) or "").lower())
        inner.leave_known(FSDP | {f"fsdp_{k}": r for k, r in FSDP.items()})
    if "no_shard" in words:
        return _sharding("ddp", False)
    if "shard_grad_op" in words:
        reader.note("sharding: `shard_grad_op` keeps the parameters whole, as zero2 does; fsdp shards them too")
    return _sharding("fsdp", offload)


def accelerate(reader: Reader, key: str) -> dict[str, Any] | None:
    """The sharding of an accelerate configuration that is named (`zero3`, `fsdp2`, `multi_gpu`, or a file)."""
    name = reader.text(key)
    if not name:
        return None
    short = Path(name).stem.lower()
    if found := re.search(r"zero[_-]?([0-3])", short):
        return _sharding(_STAGES[int(found[1])], "offload" in short)
    if "fsdp" in short:
        return _sharding("fsdp", "offload" in short)
    if "multi_gpu" in short:
        return _sharding("ddp", False)
    if "single_gpu" not in short:
        reader.leave(key, "no counterpart because its name says neither zero1 to zero3, nor fsdp, nor multi_gpu; write `sharding` yourself")
    return None


def with_processes(sharding: dict[str, Any] | None, processes: int | None) -> dict[str, Any] | None:
    """The sharding over that many processes; several processes without a sharding are data parallel."""
    if processes and processes > 1:
        return {**(sharding or {"stage": "ddp"}), "processes": processes}
    return sharding


def write(recipe: dict[str, Any], sharding: dict[str, Any] | None) -> None:
    """Into the recipe, in its shortest form."""
    if sharding:
        recipe["sharding"] = sharding if len(sharding) > 1 else sharding["stage"]


def _sharding(stage: str, offload: bool) -> dict[str, Any]:
    return {"stage": stage, "offload": "cpu"} if offload and stage != "ddp" else {"stage": stage}


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)
