"""The YAML of LLaMA-Factory's second engine (`examples/v1`, `src/llamafactory/v1/config` of version 0.9.5): groups instead of flat keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery.importers import _adapter, _sharding, _trainer
from tunery.importers._adapter import Lora
from tunery.importers._draft import draft, hub_source
from tunery.importers._file import beside
from tunery.importers._reader import Reader
from tunery.importers._trainer import BATCHES, CODE, KERNEL, LOADING, Trainer

SUMMARY = "the YAML of LLaMA-Factory's second engine (v1)"
MARKS = frozenset(
    {"peft_config", "dist_config", "quant_config", "kernel_config", "init_config", "train_dataset", "model_class", "sample_backend"}
)
_TRAINER = Trainer(
    "LLaMA-Factory",
    learning_rate=1e-4,
    schedule="constant",
    rows=1,
    words={"per_device_train_batch_size": "micro_batch_size", "gradient_checkpointing": "enable_activation_checkpointing"},
)
_SERVING = "needless here because it is for generating, not for training"

KNOWN: Mapping[str, str] = {
    "template": "no counterpart because the model's own chat template is used, in training as in serving; check that it is the same",
    "model_class": "needless here because the model's class follows from its own configuration",
    "trust_remote_code": CODE,
    "flash_attn": KERNEL,
    "kernel_config": KERNEL,
    "init_config": LOADING,
    "batching_*": BATCHES,
    "sample_backend": _SERVING,
    "max_new_tokens": _SERVING,
    "save_ckpt_as_hf": _trainer.CHECKPOINTS,
    "save_epochs": _trainer.CHECKPOINTS,
    "optim_config": "no counterpart because the optimiser is AdamW",
    "lr_scheduler_config": "no counterpart because its settings are the plugin's own; write train.schedule and train.warmup",
}


def recognises(mapping: Mapping[str, Any]) -> int:
    """Groups that only this engine has."""
    return len(MARKS & set(mapping))


def convert(reader: Reader) -> dict[str, Any]:
    """The recipe. Raises InputError for a file that merges an adapter, and for training of single layers."""
    peft = reader.inside("peft_config")
    if "export_dir" in peft:
        raise peft.error("export_dir", "this file merges an adapter and trains nothing, so there is no recipe in it; name a training file")
    recipe = draft(reader.text("model"), _datasets(reader, "train_dataset"), reader)
    if rows := _datasets(reader, "eval_dataset"):
        recipe["data"]["valid"] = rows[0]
    recipe["method"] = _method(reader, peft)
    recipe["train"]["max_length"] = reader.integer("cutoff_len", low=2) or 2048
    if start := peft.texts("adapter_name_or_path"):
        recipe["train"]["init_from"] = start[0]
    _sharding.write(recipe, _distribution(reader.inside("dist_config"), recipe))
    _trainer.precision(reader, recipe)
    rows_a_step = reader.integer("global_batch_size", low=1)
    _TRAINER.read(reader, recipe)
    if rows_a_step:
        recipe["train"]["rows_per_step"] = rows_a_step
        reader.leave("micro_batch_size", "needless here because global_batch_size says the rows of a step")
    reader.leave_known(KNOWN)
    return recipe


def _datasets(reader: Reader, key: str) -> list[str]:
    """The sources in the YAML file that the key names, where it is found; a file of rows is itself the source."""
    name = reader.text(key)
    if not name:
        return []
    if not name.endswith((".yaml", ".yml")):
        return [name if "." in name.rpartition("/")[2] else hub_source(reader, name)]
    listed = beside(reader.folder, name)
    if listed is None:
        reader.leave(key, f"no counterpart because {name}, which lists the data, is not beside the file; write the files in data.train")
        return []
    found = []
    for entry in listed.values():
        if isinstance(entry, Mapping) and isinstance(entry.get("path"), str):
            local = entry.get("source") == "local" or entry["path"].endswith((".json", ".jsonl"))
            found.append(entry["path"] if local else hub_source(reader, entry["path"], None, entry.get("split")))
            if entry.get("size"):
                reader.note(f"data: {name} takes {entry['size']} rows of {entry['path']}; a recipe takes all of them")
    return found


def _method(reader: Reader, peft: Reader) -> dict[str, Any] | str:
    quantisation = reader.inside("quant_config")
    quantisation.text("name")
    bits = quantisation.integer("quantization_bit")
    if not peft.mapping:
        quantisation.leave("quantization_bit", "no counterpart because a quantised base is trained by an adapter only (method: qlora)")
        return "full"
    kind = peft.text("name")
    if kind != "lora":
        raise peft.error("name", f"`{kind}` has no counterpart: layers are trained by an adapter or all of them; choose lora or full")
    if bits not in (None, 4):
        quantisation.leave("quantization_bit", _adapter.EIGHT_BIT)
    dropout = peft.number("lora_dropout")
    method = Lora(
        rank=peft.integer("r", low=1) or 8,
        alpha=peft.number("lora_alpha") or 16,
        dropout=0.05 if dropout is None else dropout,
        targets=_adapter.targets(peft, "target_modules"),
        rslora=bool(peft.flag("use_rslora")),
        dora=bool(peft.flag("use_dora")),
        four_bit=bits == 4,
    ).method()
    peft.leave_known(
        {"modules_to_save": "no counterpart because beside the adapter only a task's head and method.train_tokens are learned"}
    )
    return method


def _distribution(config: Reader, recipe: dict[str, Any]) -> dict[str, Any] | None:
    name = (config.text("name") or "").lower()
    config.leave_known(
        {"cp_*": "no counterpart because context parallelism is not there: see `sharding`", "dcp_path": _trainer.CHECKPOINTS}
    )
    if name == "deepspeed":
        return _sharding.deepspeed(config, "config_file")
    if name.startswith("fsdp"):
        return {"stage": "fsdp"}
    if name == "ddp":
        return {"stage": "ddp"}
    config.leave("name", "no counterpart because the kinds of sharding are ddp, zero1, zero2, zero3 and fsdp")
    return None
