"""Axolotl's YAML (`axolotl train FILE`), as its schemas define the keys (utils/schemas/, version 0.19)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery.importers import _adapter, _sharding, _trainer
from tunery.importers._adapter import Lora
from tunery.importers._axolotl_keys import DATASET, KNOWN, ROWS
from tunery.importers._draft import default, draft, hub_source, kto_pairs, track
from tunery.importers._reader import Reader
from tunery.importers._trainer import KERNEL, Trainer

SUMMARY = "Axolotl's YAML"
MARKS = frozenset(
    {
        *("base_model", "micro_batch_size", "sequence_len", "sample_packing", "num_epochs", "adapter", "val_set_size", "rl"),
        *("dataset_prepared_path", "lora_target_linear", "evals_per_epoch", "saves_per_epoch", "pretraining_dataset", "lr_scheduler"),
    }
)
_TRAINER = Trainer(
    "Axolotl",
    epochs=1.0,
    learning_rate=None,
    schedule="cosine",
    warmup=0.03,
    rows=1,
    words={
        "num_train_epochs": "num_epochs",
        "per_device_train_batch_size": "micro_batch_size",
        "optim": "optimizer",
        "lr_scheduler_type": "lr_scheduler",
    },
)
_KERNELS = {"LigerPlugin", "CutCrossEntropyPlugin", "KernelsPlugin"}
_TEXT_TYPES = {"completion", "pretrain"}
_KNOWN_NAMES = {
    "messages",
    "conversations",
    "chosen",
    "rejected",
    "text",
    "instruction",
    "input",
    "output",
    "system",
    "tools",
    "role",
    "content",
}
_KNOWN_NAMES |= {"from", "value"}


def recognises(mapping: Mapping[str, Any]) -> int:
    """Keys that only Axolotl has."""
    return len(MARKS & set(mapping))


def convert(reader: Reader) -> dict[str, Any]:
    """The recipe. Raises InputError for a reward model or reinforcement learning."""
    for key in ("reward_model", "process_reward_model"):
        if reader.flag(key):
            raise reader.error(key, "a reward model is trained, which Tunery has no task for; nearest is dpo (task: preference)")
    sources, text = _datasets(reader)
    recipe = draft(reader.text("base_model"), sources, reader)
    recipe["task"] = "text" if text else "chat"
    _preference(reader, recipe)
    _validation_rows(reader, recipe)
    recipe["method"] = _method(reader)
    length = reader.integer("sequence_len", low=2)
    if length:
        recipe["train"]["max_length"] = length
    else:
        default(reader, recipe, "max_length", 512, "Axolotl")
    if start := reader.text("lora_model_dir"):
        recipe["train"]["init_from"] = start
    processes = (reader.integer("dp_shard_size", low=1) or 1) * (reader.integer("dp_replicate_size", low=1) or 1)
    processes *= reader.integer("ray_num_workers", low=1) or 1
    sharding = _sharding.deepspeed(reader) or _sharding.fsdp(reader, recipe)
    if sharding is None and "dp_shard_size" in reader and processes > 1:
        sharding = {"stage": "fsdp"}
    _sharding.write(recipe, _sharding.with_processes(sharding, processes))
    for older, newer in (("bfloat16", "bf16"), ("float16", "fp16")):
        if older in reader and newer in reader:
            reader.leave(older, f"needless here because {newer} says it")
    words = tuple(new if new in reader else old if old in reader else new for new, old in (("bf16", "bfloat16"), ("fp16", "float16")))
    _trainer.precision(reader, recipe, dtypes=("torch_dtype",), no=(words[0], words[1]))
    _batch_size(reader)
    packed = recipe["train"]["max_length"] if reader.flag("sample_packing") else None
    if reader.integer("evals_per_epoch") != 1 or "valid" not in recipe["data"]:
        no_valid = "valid" not in recipe["data"]
        reader.leave("evals_per_epoch", _trainer.NO_VALID if no_valid else "no counterpart because train.validate_every counts steps")
    _wandb(reader, recipe)
    _leave_harmless(reader)
    _TRAINER.read(reader, recipe, processes, packed=packed)
    reader.leave_known(KNOWN)
    return recipe


def _datasets(reader: Reader) -> tuple[list[str], bool]:
    """The sources, and whether their documents are learned whole."""
    found, texts = [], []
    for key in ("datasets", "pretraining_dataset"):
        if isinstance(reader.peek(key), str):
            found.append(hub_source(reader, str(reader.take(key))))
            texts.append(key == "pretraining_dataset")
            continue
        for each in reader.each(key):
            found += _source(each)
            texts.append(_is_text(each, pretraining=key == "pretraining_dataset"))
            each.leave_known(DATASET)
    if any(texts) and not all(texts):
        reader.note("task: some sources are text and some are chats; a recipe has one task, chat is written")
    return found, bool(texts) and all(texts)


def _source(each: Reader) -> list[str]:
    path = each.text("path") or ""
    files = each.texts("data_files")
    split, config = each.text("split"), each.text("name")
    if files:
        if path and path not in ("json", "csv", "parquet", "text"):
            each.leave("path", "no counterpart because one file of a hub data set is not named in a recipe; download it")
        for key in ("split", "name"):
            if each.peek(key) != "train":
                each.leave(key, "no counterpart because all rows of a file are used")
        return files
    if path.endswith((".json", ".jsonl", ".csv", ".parquet", ".txt")) or path.startswith((".", "/", "~")):
        if split not in (None, "train"):
            each.leave("split", "no counterpart because all rows of a file are used")
        return [path]
    return [hub_source(each, path, config, split)] if path else []


def _is_text(each: Reader, pretraining: bool) -> bool:
    kind = each.peek("type")
    if isinstance(kind, Mapping):
        each.leave("type", "no counterpart because a prompt's own wording is not part of a recipe; write it into the rows")
        return False
    kind = each.text("type") or ("pretrain" if pretraining else "")
    for key in list(each.mapping):
        value = each.peek(key)
        names = list(value.values()) if isinstance(value, Mapping) else [value]
        columns = key.startswith(("field", "message_field_role", "message_field_content")) or key in (
            "message_property_mappings",
            "text_column",
        )
        if columns and all(isinstance(name, str) and name in _KNOWN_NAMES for name in names):
            each.leave(key, ROWS)
    if kind in _TEXT_TYPES:
        return True
    base = kind.split(":")[0].split(".")[0]
    if base == "alpaca":
        each.leave("type", "no counterpart because Axolotl's wording around an instruction is not written; the chat template renders it")
    elif kind and base != "chat_template" and not kind.endswith((".default", ".argilla", ".ultra", ".intel")):
        each.leave("type", "no counterpart because rows are known by their own keys, and this form is not among them; convert the rows")
    return False


def _preference(reader: Reader, recipe: dict[str, Any]) -> None:
    kind = (reader.text("rl") or "").lower()
    if not kind:
        for key in (
            "rl_beta",
            "orpo_alpha",
            "simpo_gamma",
            "cpo_alpha",
            "kto_desirable_weight",
            "kto_undesirable_weight",
            "dpo_label_smoothing",
        ):
            reader.leave(key, "needless here because rl is empty")
        return
    if kind not in ("dpo", "ipo", "orpo", "kto", "simpo"):
        raise reader.error("rl", f"`{kind}` is reinforcement learning, which Tunery has no task for; nearest is dpo (task: preference)")
    if kind == "ipo":
        reader.leave("rl", "no counterpart because the losses are dpo, orpo, kto and simpo; dpo is written")
    loss = "dpo" if kind == "ipo" else kind
    task: dict[str, Any] = {"name": "preference", "loss": loss}
    beta = reader.number("rl_beta")
    inner = reader.inside("trl").number("beta") if isinstance(reader.peek("trl"), Mapping) else None
    alpha = reader.number("orpo_alpha")
    if loss != "orpo":
        reader.leave("orpo_alpha", f"needless here because rl is {kind}")
    chosen = next((b for b in (inner, beta, alpha if loss == "orpo" else None) if b is not None), None)
    task["beta"] = 0.1 if chosen is None and loss != "simpo" else chosen if chosen is not None else 2.0
    for key, option, wanted in (
        ("simpo_gamma", "gamma", "simpo"),
        ("kto_desirable_weight", "desirable_weight", "kto"),
        ("kto_undesirable_weight", "undesirable_weight", "kto"),
        ("dpo_label_smoothing", "label_smoothing", "dpo"),
    ):
        value = reader.number(key)
        if value is not None and loss == wanted:
            task[option] = value
        else:
            reader.leave(key, f"needless here because rl is {kind}")
    reader.leave("cpo_alpha", "no counterpart because a preference loss is used alone")
    reader.leave("dpo_loss_type", "no counterpart because the losses are dpo, orpo, kto and simpo")
    reader.leave("dpo_loss_weights", "no counterpart because a preference loss is used alone")
    recipe["task"] = task
    kto_pairs(reader, recipe)


def _validation_rows(reader: Reader, recipe: dict[str, Any]) -> None:
    size = reader.number("val_set_size")
    tests = [source for each in reader.each("test_datasets") for source in _test_source(each)]
    if tests:
        recipe["data"]["valid"] = tests[0]
        if len(tests) > 1:
            reader.note(f"data.valid: one file or data set; {tests[0]} is written, and not {', '.join(tests[1:])}")
    elif size and size < 1:
        recipe["data"]["valid"] = size
    elif size:
        reader.leave("val_set_size", "no counterpart because data.valid is a share of the rows or a file, not a number of rows")


def _test_source(each: Reader) -> list[str]:
    _is_text(each, pretraining=False)
    found = _source(each)
    each.leave_known(DATASET)
    return found


def _method(reader: Reader) -> dict[str, Any] | str:
    adapter = reader.text("adapter")
    four, eight = reader.flag("load_in_4bit"), reader.flag("load_in_8bit")
    if eight:
        reader.leave("load_in_8bit", _adapter.EIGHT_BIT)
    if not adapter:
        if four:
            reader.leave("load_in_4bit", "no counterpart because a quantised base is trained by an adapter only (method: qlora)")
        reader.leave_known(
            dict.fromkeys(
                ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_linear"),
                "needless here because adapter is empty",
            )
        )
        return "full"
    if adapter not in ("lora", "qlora"):
        raise reader.error("adapter", f"`{adapter}` has no counterpart; choose lora or qlora, or a method of `tunery methods`")
    bnb = reader.inside("bnb_config_kwargs")
    double = bnb.flag("bnb_4bit_use_double_quant")
    if (bnb.text("bnb_4bit_quant_type") or "nf4") != "nf4":
        bnb.leave("bnb_4bit_quant_type", "no counterpart because 4-bit values are NF4 here")
    bnb.leave_known({"*": _sharding.OWN})
    linear = reader.flag("lora_target_linear")
    targets = _adapter.targets(reader, "lora_target_modules", None if linear else "PEFT picks layers by the architecture")
    rank = reader.integer("lora_r", low=1)
    lora = Lora(
        rank=rank or 8,
        alpha=reader.number("lora_alpha") or 8,
        dropout=reader.number("lora_dropout") or 0.0,
        targets="all-linear" if linear else targets,
        rslora=bool(reader.flag("peft_use_rslora")),
        dora=bool(reader.flag("peft_use_dora")),
        four_bit=bool(four) or adapter == "qlora",
        double=double is not False,
        loraplus_ratio=reader.number("loraplus_lr_ratio"),
    )
    if not rank:
        reader.note("method.rank: 8 is PEFT's default; the file names none")
    _adapter.start(reader, "peft_init_lora_weights", lora)
    if isinstance(reader.peek("peft"), Mapping):
        _adapter.loftq(reader.inside("peft"), "loftq_config", lora)
    return lora.method()


def _batch_size(reader: Reader) -> None:
    """`batch_size`, the older word for rows a step: needless where the other two are, else as the rows of one batch."""
    if "micro_batch_size" in reader and "gradient_accumulation_steps" in reader:
        reader.leave("batch_size", "needless here because micro_batch_size and gradient_accumulation_steps say it")
    else:
        reader.leave(
            "batch_size", "no counterpart because it is a name of older versions; write micro_batch_size and gradient_accumulation_steps"
        )


def _leave_harmless(reader: Reader) -> None:
    """Keys of which some values change nothing that is learned."""
    plugins = reader.peek("plugins")
    if isinstance(plugins, list) and all(str(p).rpartition(".")[2] in _KERNELS for p in plugins):
        reader.leave("plugins", KERNEL)
    tokens = reader.peek("special_tokens")
    if isinstance(tokens, Mapping) and set(tokens) <= {"pad_token"}:
        reader.leave("special_tokens", "needless here because padding is never learned, and packs need none")
    if reader.peek("chat_template") == "tokenizer_default":
        reader.leave("chat_template", "needless here because the model's own chat template is what is used")


def _wandb(reader: Reader, recipe: dict[str, Any]) -> None:
    project = reader.text("wandb_project")
    if project:
        named: dict[str, Any] = {"name": "wandb", "project": project}
        if entity := reader.text("wandb_entity"):
            named["entity"] = entity
        if not track(reader, recipe, [named]):
            for key in ("wandb_project", "wandb_entity"):
                reader.leave(key, "no counterpart because a recipe names no trackers")
    if reader.flag("use_tensorboard") and not track(reader, recipe, ["tensorboard"]):
        reader.leave("use_tensorboard", "no counterpart because a recipe names no trackers")
