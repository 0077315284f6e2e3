"""TRL's YAML (`trl sft --config FILE`, `trl dpo`, `trl kto`), as its ScriptArguments, ModelConfig and trainer configs define the keys (1.16).

The keys of the alignment handbook, which wraps TRL (`dataset_mixer`, `dataset_mixture`), are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery.importers import _adapter, _sharding, _trainer
from tunery.importers._adapter import Lora
from tunery.importers._draft import default, draft, hub_source, kto_pairs
from tunery.importers._reader import Reader
from tunery.importers._trainer import CODE, KERNEL, LOADING, LOSS, SPEED, Trainer

SUMMARY = "TRL's YAML, and the alignment handbook's"
MARKS = frozenset(
    {
        *(
            "dataset_name",
            "dataset_config",
            "dataset_train_split",
            "dataset_test_split",
            "dataset_mixer",
            "dataset_mixture",
            "dataset_splits",
        ),
        *("use_peft", "lora_target_modules", "lora_task_type", "dataset_num_proc", "assistant_only_loss", "completion_only_loss"),
        *("attn_implementation", "max_seq_length", "max_length", "max_prompt_length", "beta", "loss_type", "use_bnb_nested_quant"),
        *("eos_token", "dataset_text_field", "packing_strategy", "accelerate_config"),
    }
)
_RL = ("num_generations", "reward_funcs", "reward_model_name_or_path", "max_completion_length", "vllm_mode")
_TEMPLATE = "no counterpart because the model's own chat template is used, in training as in serving; check that it is the same"
_DPO_LOSSES = {"sigmoid": "dpo", "kto": "kto", "orpo": "orpo", "simpo": "simpo"}
_SFT_LOSSES = {"nll", "chunked_nll"}
_COLUMNS = "no counterpart because columns are known by fixed names"

KNOWN: Mapping[str, str] = {
    "trust_remote_code": CODE,
    "model_revision": "no counterpart because a recipe names a model, not a commit; download that commit and name the folder",
    "attn_implementation": KERNEL,
    "use_flash_attention_2": KERNEL,
    "model_init_kwargs": "no counterpart because the model's configuration stays as it is",
    "lora_modules_to_save": "no counterpart because beside the adapter only a task's head and method.train_tokens are learned",
    "lora_target_parameters": "no counterpart because an adapter is put on linear layers, not on single parameters",
    "lora_task_type": "needless here because the task says it",
    "bnb_4bit_quant_storage": _sharding.OWN,
    "chat_template*": _TEMPLATE,
    "eos_token": _TEMPLATE,
    "pad_token": "needless here because padding is never learned",
    "dataset_text_field": _COLUMNS,
    "dataset_kwargs": LOADING,
    "dataset_num_proc": LOADING,
    "dataset_streaming": LOADING,
    "dataset_batch_size": LOADING,
    "preprocessing_num_workers": LOADING,
    "auto_insert_empty_system_msg": _TEMPLATE,
    "shuffle_dataset": _trainer.BATCHES,
    "ignore_bias_buffers": _trainer.DEVICES,
    "packing_strategy": _trainer.BATCHES,
    "eval_packing": _trainer.BATCHES,
    "padding_free": _trainer.BATCHES,
    "pad_to_multiple_of": _trainer.BATCHES,
    "truncation_mode": "no counterpart because a row that is too long is cut at its end, and counted (data.max_truncated)",
    "max_prompt_length": "no counterpart because a row has one length limit (train.max_length)",
    "completion_only_loss": "needless here because only answers are learned, but of `text` rows the whole",
    "assistant_only_loss": "needless here because only the assistant's turns are learned",
    "router_aux_loss_coef": LOSS,
    "disable_dropout": "needless here because a model's own dropout is off in training, as published models have it",
    "precompute_ref_*": SPEED,
    "loss_weights": "no counterpart because a preference loss is used alone",
    "ld_alpha": LOSS.replace("cross-entropy of the supervised tokens", "one of the paper"),
    "f_divergence_type": "no counterpart because the divergence is DPO's own, reverse KL",
    "f_alpha_divergence_coef": "no counterpart because the divergence is DPO's own, reverse KL",
    "use_weighting": "no counterpart because every pair has one weight",
    "discopop_tau": "no counterpart because the losses are dpo, orpo, kto and simpo",
    "sync_ref_model": "no counterpart because the reference is the frozen base",
    "ref_model*": "no counterpart because the reference is the frozen base",
    "cpo_alpha": "no counterpart because a preference loss is used alone",
    "env": "no counterpart because variables belong to the shell that starts the run",
    "mtp_*": "no counterpart because a model predicts the next token only",
}


def recognises(mapping: Mapping[str, Any]) -> int:
    """Keys that TRL's configurations have, with a model named as transformers does."""
    if "model_name_or_path" not in mapping:
        return 0
    return len(MARKS & set(mapping))


def convert(reader: Reader) -> dict[str, Any]:
    """The recipe. Raises InputError for reinforcement learning and reward models."""
    for key in _RL:
        if key in reader:
            raise reader.error(key, "this is reinforcement learning, which Tunery has no task for; nearest is dpo (task: preference)")
    train, valid = _data(reader)
    recipe = draft(reader.text("model_name_or_path"), train, reader)
    rate = _task(reader, recipe)
    if valid is not None and _wants_validation(reader):
        recipe["data"]["valid"] = valid
    recipe["method"] = _method(reader)
    length = next((n for n in (reader.integer(k, low=2) for k in ("max_length", "max_seq_length")) if n), None)
    if length:
        recipe["train"]["max_length"] = length
    else:
        default(reader, recipe, "max_length", 1024, "TRL")
    processes = reader.integer("num_processes", low=1) or 1
    sharding = _sharding.accelerate(reader, "accelerate_config") or _sharding.deepspeed(reader) or _sharding.fsdp(reader, recipe)
    _sharding.write(recipe, _sharding.with_processes(sharding, processes))
    _trainer.precision(reader, recipe, dtypes=("dtype", "torch_dtype"))
    packed = recipe["train"]["max_length"] if reader.flag("packing") else None
    if reader.peek("model_revision") == "main":
        reader.leave("model_revision", "needless here because a hub id means its main branch")
    Trainer("TRL", learning_rate=rate).read(reader, recipe, processes, packed)
    reader.leave_known(KNOWN)
    return recipe


def _task(reader: Reader, recipe: dict[str, Any]) -> float:
    """Write the task; TRL's default rate for it."""
    losses = reader.texts("loss_type")
    weights = {key: reader.number(key) for key in ("desirable_weight", "undesirable_weight")}
    beta, gamma, smoothing = reader.number("beta"), reader.number("simpo_gamma"), reader.number("label_smoothing")
    preference = beta is not None or gamma is not None or any(w is not None for w in weights.values())
    if not preference and set(losses) <= _SFT_LOSSES:
        reader.leave("label_smoothing", LOSS)
        return 2e-5
    if not preference and losses == ["dft"]:
        reader.leave("loss_type", LOSS)
        return 2e-5
    loss = "kto" if any(w is not None for w in weights.values()) else _DPO_LOSSES.get(losses[0]) if len(losses) == 1 else None
    if loss is None:
        loss = "simpo" if gamma is not None else "dpo"
        if losses:
            reader.leave("loss_type", f"no counterpart because the losses are dpo, orpo, kto and simpo, one at a time; {loss} is written")
        else:
            reader.note(f"task: the file does not say which trainer it is for; {loss} is written (others: loss: orpo, kto, simpo)")
    task: dict[str, Any] = {"name": "preference", "loss": loss, "beta": 0.1 if beta is None else beta}
    if gamma is not None and loss == "simpo":
        task["gamma"] = gamma
    elif gamma is not None:
        reader.leave("simpo_gamma", f"needless here because the loss is {loss}")
    if smoothing is not None and loss in ("dpo", "simpo"):
        task["label_smoothing"] = smoothing
    elif smoothing is not None:
        reader.leave("label_smoothing", f"needless here because the loss is {loss}")
    task |= {key: value for key, value in weights.items() if value is not None}
    recipe["task"] = task
    kto_pairs(reader, recipe)
    return 1e-6


def _wants_validation(reader: Reader) -> bool:
    strategy = next((str(reader.peek(k)).lower() for k in ("eval_strategy", "evaluation_strategy") if k in reader), "no")
    return strategy not in ("no", "false")


def _data(reader: Reader) -> tuple[list[Any], str | float | None]:
    """The training sources as a recipe writes them, and the validation source that the file names or implies."""
    train: list[Any] = []
    valid: str | float | None = None
    name, config = reader.text("dataset_name"), reader.text("dataset_config")
    train_split, test_split = reader.text("dataset_train_split"), reader.text("dataset_test_split")
    if name:
        train.append(hub_source(reader, name, config, train_split))
        valid = hub_source(reader, name, config, test_split or "test")
        if not _wants_validation(reader):
            reader.leave("dataset_test_split", "needless here because eval_strategy is no")
    for holder in ("dataset_mixture", "datasets"):
        inner = reader.inside(holder) if holder == "dataset_mixture" else reader
        for each in inner.each("datasets"):
            train.append(_mixed(each))
        share = inner.number("test_split_size")
        valid = share if share and share < 1 else valid
        inner.leave_known({"streaming": LOADING})
        if holder == "dataset_mixture":
            seed = inner.integer("seed")
            if seed is not None:
                inner.leave("seed", "no counterpart because one seed serves the whole run (train.seed)")
    splits = reader.texts("dataset_splits")
    mixer = reader.inside("dataset_mixer")
    for source in mixer.mapping:
        weight = mixer.number(source)
        found = hub_source(reader, source, None, splits[0] if splits else None)
        train.append({"path": found, "weight": weight} if weight not in (None, 1) else found)
        if len(splits) > 1:
            valid = valid or hub_source(reader, source, None, splits[1])
    return train, valid


def _mixed(each: Reader) -> Any:
    """One data set of a mixture; its weight or fraction is the share of its rows that an epoch shows, as in a recipe."""
    files = each.texts("data_files") if not isinstance(each.peek("data_files"), Mapping) else []
    name = each.text("id") or each.text("path") or ""
    source = files[0] if files else hub_source(each, name, each.text("config") or each.text("name"), each.text("split"))
    if len(files) > 1:
        each.leave("data_files", "no counterpart because a source is one file; write the others beside it")
    weight = next((w for w in (each.number(k) for k in ("weight", "fraction")) if w is not None), None)
    each.leave("columns", "needless here because columns that make no row are ignored")
    each.leave("data_dir", "no counterpart because a hub data set is named org/name/config:split")
    return {"path": source, "weight": weight} if weight not in (None, 1) else source


def _method(reader: Reader) -> dict[str, Any] | str:
    four, eight = reader.flag("load_in_4bit"), reader.flag("load_in_8bit")
    if eight:
        reader.leave("load_in_8bit", _adapter.EIGHT_BIT)
    double = reader.flag("use_bnb_nested_quant")
    if (reader.text("bnb_4bit_quant_type") or "nf4") != "nf4":
        reader.leave("bnb_4bit_quant_type", "no counterpart because 4-bit values are NF4 here")
    if not reader.flag("use_peft"):
        keys = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora")
        reader.leave_known(dict.fromkeys(keys, "needless here because use_peft is not set, so the whole model is trained"))
        if four:
            reader.leave("load_in_4bit", "no counterpart because a quantised base is trained by an adapter only (method: qlora)")
        return "full"
    dropout = reader.number("lora_dropout")
    return Lora(
        rank=reader.integer("lora_r", low=1) or 16,
        alpha=reader.number("lora_alpha") or 32,
        dropout=0.05 if dropout is None else dropout,
        targets=_adapter.targets(reader, "lora_target_modules", "PEFT picks layers by the architecture, often q_proj and v_proj"),
        rslora=bool(reader.flag("use_rslora")),
        dora=bool(reader.flag("use_dora")),
        four_bit=bool(four),
        double=bool(double),
    ).method()
