"""Olive's workflow JSON or YAML (`olive run --config FILE`) with a fine-tuning pass: LoRA, DoRA, QLoRA, LoftQ, LoHa or LoKr (Olive 0.13).

Older files hold a pass's settings under `config`, and call two of them `lora_r` and `lora_alpha`; both forms are read. A file that
holds passes alone, or one pass, is read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery.importers import _adapter, _sharding, _trainer
from tunery.importers._adapter import Lora
from tunery.importers._draft import draft, hub_source
from tunery.importers._reader import Reader
from tunery.importers._trainer import LOADING, SPEED, Trainer

SUMMARY = "Olive's workflow with a fine-tuning pass"
TUNING = ("lora", "dora", "qlora", "loftq", "loha", "lokr")
_TRAINER = Trainer("Olive", learning_rate=2e-4, schedule="constant", warmup=0.03)
_WORKFLOW = "needless here because it is of Olive's workflow, not of the fine-tuning"
_PASS = "no counterpart because it is no fine-tuning; the exports of a recipe are adapter, merged and onnx"
_COLUMNS = "no counterpart because columns are known by fixed names; write rows with `prompt` and `completion`, `messages` or `text`"

_TOP: Mapping[str, str] = dict.fromkeys(
    (
        *(
            "systems",
            "engine",
            "evaluators",
            "evaluator",
            "host",
            "target",
            "cache_dir",
            "output_dir",
            "search_strategy",
            "log_severity_level",
        ),
        *("pass_flows", "no_artifacts", "clean_cache", "azureml_client", "workflow_id", "auto_optimizer_options", "evaluate_input_model"),
        *("plot_pareto_frontier", "name", "packaging_config", "workflow_host", "cache_config", "search"),
    ),
    _WORKFLOW,
)
_IN_PASS: Mapping[str, str] = {
    "device_map": _trainer.DEVICES,
    "allow_tf32": SPEED,
    "ephemeral_gpu_offload": SPEED,
    "modules_to_save": "no counterpart because beside the adapter only a task's head and method.train_tokens are learned",
    "save_quant_config": "needless here because an adapter says which base it fits",
    "use_ort_trainer": SPEED,
    "ortmodule_*": SPEED,
    "disable_search": _WORKFLOW,
    "rank_dropout_scale": "no counterpart because dropout is not scaled",
    "use_effective_conv2d": "needless here because the layers are linear",
    "exclude_modules": "no counterpart because targets name what is adapted; write them out in method.targets",
    "init_weights": "needless here because an adapter begins at no change",
    "layers_*": "no counterpart because targets are names of layers; write them out in method.targets",
    "rank_pattern": "no counterpart because all adapters of a run have one rank",
    "alpha_pattern": "no counterpart because all adapters of a run have one alpha",
    "eval_dataset_size": "no counterpart because data.valid is a share of the rows or a file, not a number of rows",
    "double_quant": "needless here because the pass quantises nothing",
}


def recognises(mapping: Mapping[str, Any]) -> int:
    """A workflow has passes and an input model; a file of passes has types of Olive's."""
    workflow = 2 * ("passes" in mapping) + ("input_model" in mapping) + ("data_configs" in mapping)
    return workflow if "passes" in mapping else 3 * bool(_tuning(mapping)) or 3 * (str(mapping.get("type", "")).lower() in TUNING)


def convert(reader: Reader) -> dict[str, Any]:
    """The recipe of the workflow's one fine-tuning pass. Raises InputError when there is none, or more than one."""
    passes = reader.inside("passes") if "passes" in reader else reader
    single = "passes" not in reader and str(reader.peek("type")).lower() in TUNING
    found = [] if single else _tuning(passes.mapping)
    if not single and len(found) != 1:
        what = "no fine-tuning pass (LoRA, DoRA, QLoRA, LoftQ, LoHa, LoKr)" if not found else f"several: {', '.join(found)}; keep one"
        raise reader.error("passes", f"a recipe is one fine-tuning, and here is {what}")
    chosen = passes if single else passes.inside(found[0])
    kind = (chosen.text("type") or "").lower()
    settings = chosen.inside("config") if isinstance(chosen.peek("config"), Mapping) else chosen
    train, text = _data(reader, settings, "train_data_config")
    recipe = draft(_model(reader), train, reader)
    recipe["task"] = "text" if text else "chat"
    valid, _ = _data(reader, settings, "eval_data_config")
    share = settings.peek("eval_dataset_size")
    if valid:
        recipe["data"]["valid"] = valid[0]
    elif isinstance(share, float) and 0 < share < 1:
        recipe["data"]["valid"] = settings.number("eval_dataset_size")
    recipe["method"] = _method(settings, kind)
    arguments = settings.inside("training_args")
    if sharding := _sharding.deepspeed(arguments):
        _sharding.write(recipe, sharding)
    _dtype(settings, arguments, recipe)
    if inner := arguments.inside("extra_args").mapping:
        arguments.leave_known({"extra_args": "no counterpart because its keys are those of training_args; write them there"})
        reader.note(f"training_args.extra_args: {', '.join(inner)} were not read; write them one level up")
    _lengths(reader, recipe)
    _TRAINER.read(arguments, recipe)
    settings.leave_known(_IN_PASS)
    chosen.leave_known(_IN_PASS)
    if not single:
        _others(passes, found[0], recipe)
    reader.leave_known(_TOP)
    return recipe


def _tuning(passes: Mapping[str, Any]) -> list[str]:
    return [name for name, each in passes.items() if isinstance(each, Mapping) and str(each.get("type", "")).lower() in TUNING]


def _model(reader: Reader) -> str | None:
    model = reader.inside("input_model")
    inner = model.inside("config") if isinstance(model.peek("config"), Mapping) else model
    older = inner.inside("hf_config") if isinstance(inner.peek("hf_config"), Mapping) else inner
    name = inner.text("model_path") or older.text("model_name")
    if str(name).startswith("azureml:"):
        reader.note("model: it lies in an Azure registry; write its hub id, or a folder with it")
    for part in (model, inner, older):
        part.leave_known(
            {
                "type": "needless here because a model is one of transformers'",
                "task": "needless here because a recipe has a task of its own",
                "io_config": _WORKFLOW,
                "load_kwargs": "no counterpart because a model is loaded in its own way; code from its repository is never run",
                "from_pretrained_args": "no counterpart because a model is loaded in its own way; code from its repository is never run",
                "adapter_path": "no counterpart because a run begins from a run or an adapter folder of Tunery's (train.init_from)",
                "*": "no counterpart because a recipe names a model and nothing more of it",
            }
        )
    return name


def _data(reader: Reader, settings: Reader, key: str) -> tuple[list[str], bool]:
    """The source that a data configuration means, and whether its documents are learned whole."""
    if isinstance(settings.peek(key), Mapping):
        config: Reader | None = settings.inside(key)
    else:
        name = settings.text(key)
        config = next((each for each in _data_configs(reader) if each.peek("name") == name), None) if name else None
        if name and config is None:
            settings.leave(key, "no counterpart because no data configuration of that name is in the file")
    if config is None:
        return [], False
    config.take("name")
    load, before = (_parameters(config, part) for part in ("load_dataset_config", "pre_process_data_config"))
    files = load.texts("data_files") if not isinstance(load.peek("data_files"), Mapping) else []
    name, subset, split = load.text("data_name"), load.text("subset"), load.text("split")
    found = files[:1] or ([hub_source(load, name, subset, split)] if name else [])
    if len(files) > 1:
        load.leave("data_files", f"no counterpart for all of it because one file is written, {files[0]}")
    if files:
        for word in ("data_name", "subset", "split"):
            load.leave(word, "needless here because data_files names the file")
    load.leave_known(
        {
            "type": _COLUMNS,
            "col_filters": "no counterpart because all rows of a source are used; filter them beforehand",
            "data_dir": "no counterpart because a hub data set is named org/name/config:split",
            "token": "needless here because the hub's own login is used",
            "trust_remote_code": _trainer.CODE,
            "*": _COLUMNS,
        }
    )
    text = "text_template" not in before and not before.peek("chat_template") and before.peek("text_cols") in (None, "text", ["text"])
    before.leave_known(
        {
            "text_template": "no counterpart because a prompt's own wording is not part of a recipe; write it into the rows",
            "text_cols": _COLUMNS,
            "message_col": _COLUMNS,
            "chat_template": "no counterpart because the model's own chat template is used, in training as in serving",
            "max_samples": "no counterpart because all rows of a source are used",
            **dict.fromkeys(("strategy", "corpus_strategy", "pad_to_max_len", "padding_side", "stride", "joiner"), _trainer.BATCHES),
            **dict.fromkeys(
                ("add_special_tokens", "use_attention_mask", "random_seed", "random_retries", "processing_batch_size"), LOADING
            ),
        }
    )
    config.leave_known(
        {
            "type": LOADING,
            "user_script": _COLUMNS,
            "script_dir": _COLUMNS,
            "dataloader_config": LOADING,
            "post_process_data_config": LOADING,
        }
    )
    return found, text


def _data_configs(reader: Reader) -> list[Reader]:
    value = reader.peek("data_configs")
    if isinstance(value, Mapping):  # older files name them by key
        inner = reader.inside("data_configs")
        return [inner.inside(name) for name in inner.mapping]
    return list(reader.each("data_configs"))


def _parameters(config: Reader, part: str) -> Reader:
    """The settings of a part of a data configuration, which older files hold under `params`."""
    outer = config.inside(part)
    if not isinstance(outer.peek("params"), Mapping):
        return outer
    outer.leave_known({"type": _COLUMNS})
    return outer.inside("params")


def _lengths(reader: Reader, recipe: dict[str, Any]) -> None:
    for each in _data_configs(reader):
        before = _parameters(each, "pre_process_data_config")
        for key in ("max_seq_len", "source_max_len"):
            length = before.integer(key, low=2)
            if length and recipe["train"].get("max_length") in (None, length):
                recipe["train"]["max_length"] = length
            else:
                before.leave(key, "no counterpart because a run has one length limit (train.max_length)")
        each.leave_known(dict.fromkeys(each.mapping, "needless here because the fine-tuning does not use this data"))


def _method(settings: Reader, kind: str) -> dict[str, Any]:
    rank = settings.integer("r", low=1) or settings.integer("lora_r", low=1) or 64
    alpha = settings.number("alpha") or settings.number("lora_alpha") or 16.0
    targets = _adapter.targets(settings, "target_modules", None if kind in ("qlora", "loftq") else "PEFT picks layers by the architecture")
    if kind in ("loha", "lokr"):
        found: dict[str, Any] = {"name": kind, "rank": rank, "alpha": _adapter.whole(alpha), "targets": targets or "all-linear"}
        settings.leave("lora_dropout", "needless here because LoHa and LoKr do not use it; rank_dropout and module_dropout are theirs")
        for key in ("rank_dropout", "module_dropout"):
            if value := settings.number(key):
                found[key] = value
        if kind == "lokr":
            if settings.flag("decompose_both"):
                found["decompose_both"] = True
            if (factor := settings.integer("decompose_factor", low=-1)) is not None:
                found["decompose_factor"] = factor
        return found
    dropout = settings.number("lora_dropout")
    lora = Lora(rank, alpha, 0.05 if dropout is None else dropout, targets, dora=kind == "dora", four_bit=kind in ("qlora", "loftq"))
    if kind == "qlora":
        lora.double = bool(settings.flag("double_quant"))
        if (settings.text("quant_type") or "nf4") != "nf4":
            settings.leave("quant_type", "no counterpart because 4-bit values are NF4 here")
    if kind == "loftq":
        lora.start = "loftq"
        if settings.integer("loftq_iter") not in (None, 1):
            settings.leave("loftq_iter", "no counterpart because LoftQ's start is computed in one pass here")
    return lora.method()


def _dtype(settings: Reader, arguments: Reader, recipe: dict[str, Any]) -> None:
    """Olive's compute type wins over the type of the weights; the trainer's bf16 and fp16 are its own."""
    _trainer.precision(arguments, recipe)
    for key in ("compute_dtype", "torch_dtype"):
        dtype = (settings.text(key) or "").lower()
        written = {"bfloat16": "bf16", "float32": "fp32"}.get(dtype)
        if written and recipe["train"].get("precision", written) == written:
            recipe["train"]["precision"] = written
        else:
            settings.leave(
                key, f"no counterpart because precision is one of bf16 and fp32, and is {recipe['train'].get('precision', 'auto')} here"
            )


def _others(passes: Reader, tuned: str, recipe: dict[str, Any]) -> None:
    """The passes after the fine-tuning that are exports of a recipe."""
    exports: list[Any] = ["adapter"]
    for name in passes.mapping:
        if name == tuned:
            continue
        each = passes.inside(name)
        kind = str(each.peek("type")).lower()
        inner = each.inside("config") if isinstance(each.peek("config"), Mapping) else each
        precision = str(inner.peek("precision")).lower()
        wanted: Any = None
        if kind == "mergeadapterweights":
            wanted = "merged"
        elif kind == "onnxconversion":
            wanted = "onnx"
        elif kind == "modelbuilder" and precision in ("fp32", "int8", "int4") and not inner.peek("metadata_only"):
            wanted = "onnx" if precision == "fp32" else {"onnx": inner.text("precision")}
        names = [e if isinstance(e, str) else next(iter(e)) for e in exports]
        if wanted is not None and (wanted if isinstance(wanted, str) else "onnx") not in names:
            each.take("type")
            exports.append(wanted)
        inner.leave_known(dict.fromkeys(inner.mapping, _PASS if wanted is None else "needless here because an export decides its own form"))
        each.leave_known(dict.fromkeys(each.mapping, _PASS))
    if len(exports) > 1:
        recipe["export"] = exports
