"""LLaMA-Factory's YAML (`llamafactory-cli train FILE`), as its argument classes define the keys (hparams/, version 0.9.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery.importers import _adapter, _sharding, _trainer
from tunery.importers._adapter import Lora
from tunery.importers._draft import default, draft, hub_source, kto_pairs
from tunery.importers._file import beside
from tunery.importers._reader import OFF, Reader
from tunery.importers._trainer import BATCHES, CODE, KERNEL, LOADING, LOGGED, LOSS, Trainer

SUMMARY = "LLaMA-Factory's YAML"
MARKS = frozenset(
    {
        *("stage", "finetuning_type", "template", "cutoff_len", "lora_target", "lora_rank", "dataset_dir", "do_train", "plot_loss"),
        *("quantization_bit", "pref_loss", "pref_beta", "overwrite_cache", "val_size", "oft_target", "infer_backend", "export_dir"),
    }
)
_TRAINER = Trainer("LLaMA-Factory", words={"early_stopping_patience": "early_stopping_steps"})
_TEXT_ONLY = "no counterpart because Tunery trains language models: no images, video or sound"
_OPTIMISER = "no counterpart because AdamW is the optimiser"
_MEGATRON = "no counterpart because there is no Megatron backend: see `sharding`"
_SERVING = "needless here because it is for generating, not for training"
_SWANLAB = "no counterpart because the trackers are tensorboard, mlflow and wandb"

KNOWN: Mapping[str, str] = {
    "template": "no counterpart because the model's own chat template is used, in training as in serving; check that it is the same",
    "trust_remote_code": CODE,
    "max_samples": "no counterpart because all rows of a file are used; cut the file",
    "preprocessing_*": LOADING,
    "overwrite_cache": LOADING,
    "tokenized_path": LOADING,
    "data_shared_file_system": LOADING,
    "streaming": LOADING,
    "buffer_size": LOADING,
    "mix_strategy": "no counterpart because the rows of all files are shuffled together; weigh a file with data.train[].weight",
    "interleave_probs": "no counterpart because the rows of all files are shuffled together; weigh a file with data.train[].weight",
    "disable_shuffling": BATCHES,
    "train_on_prompt": LOSS,
    "mask_history": "no counterpart because every assistant turn is learned; give earlier ones `weight: 0` in the rows",
    "ignore_pad_token_for_loss": "needless here because padding is never learned",
    "default_system": "no counterpart because a system prompt is part of each row",
    "tool_format": "no counterpart because the model's own chat template writes the tools",
    "enable_thinking": "no counterpart because the model's own chat template decides what becomes of thoughts",
    "preserve_thinking": "no counterpart because the model's own chat template decides what becomes of thoughts",
    "eval_on_each_dataset": "no counterpart because validation rows are one file",
    "eval_num_beams": _SERVING,
    "media_dir": _TEXT_ONLY,
    "image_*": _TEXT_ONLY,
    "video_*": _TEXT_ONLY,
    "audio_*": _TEXT_ONLY,
    "crop_to_patches": _TEXT_ONLY,
    "freeze_vision_tower": _TEXT_ONLY,
    "freeze_multi_modal_projector": _TEXT_ONLY,
    "freeze_language_model": _TEXT_ONLY,
    "flash_attn": KERNEL,
    "enable_liger_kernel": KERNEL,
    "use_unsloth*": KERNEL,
    "use_v1_kernels": KERNEL,
    "disable_gradient_checkpointing": "needless here because train.gradient_checkpointing is chosen from the memory",
    "use_reentrant_gc": _trainer.SPEED,
    "low_cpu_mem_usage": _trainer.SPEED,
    "upcast_*": "needless here because what is trained is kept in float32",
    "pure_bf16": "no counterpart because what is trained is kept in float32, with products in bf16 (precision: bf16)",
    "cache_dir": "needless here because models lie in Tunery's own cache (TUNERY_CACHE)",
    "model_revision": "no counterpart because a recipe names a model, not a commit; download that commit and name the folder",
    "rope_scaling": "no counterpart because the model's context stays as it is",
    "shift_attn": "no counterpart because attention is the model's own",
    "mixture_of_depths": "no counterpart because the model's architecture stays as it is",
    "resize_vocab": "no counterpart because the vocabulary stays as it is",
    "add_tokens": "no counterpart because tokens are added to the model's folder beforehand; method.train_tokens learns their rows",
    "add_special_tokens": "no counterpart because tokens are added to the model's folder beforehand; method.train_tokens learns their rows",
    "new_special_tokens_config": "no counterpart because tokens are added to the model's folder beforehand",
    "init_special_tokens": "no counterpart because tokens are added to the model's folder beforehand",
    "use_fast_tokenizer": LOADING,
    "split_special_tokens": "needless here because text in a row never becomes a special token",
    "additional_target": "no counterpart because beside the adapter only a task's head and method.train_tokens are learned",
    "create_new_adapter": "no counterpart because train.init_from goes on with the adapter itself; merge it first for a new one",
    "loraplus_lr_embedding": "no counterpart because no adapter is put on embeddings",
    "pissa_iter": "needless here because PiSSA's start is computed by the exact decomposition",
    "pissa_convert": "needless here because PiSSA is always saved as the LoRA that fits the untouched base",
    "quantization_device_map": _sharding.OWN,
    "pref_ftx": "no counterpart because the loss has its own likelihood part, or the stage is not dpo",
    "pref_bco_weight": "no counterpart because a preference loss is used alone",
    "ld_alpha": "no counterpart because the loss is the one of the paper",
    "ref_model*": "no counterpart because the reference is the frozen base",
    "reward_model*": "no counterpart because there is no reward model in any task",
    "ppo_*": "no counterpart because there is no PPO",
    "freeze_*": "no counterpart because layers are trained by an adapter or all of them (method: full)",
    "use_llama_pro": "no counterpart because the model's architecture stays as it is",
    "use_galore": _OPTIMISER,
    "galore_*": _OPTIMISER,
    "use_apollo": _OPTIMISER,
    "apollo_*": _OPTIMISER,
    "use_badam": _OPTIMISER,
    "badam_*": _OPTIMISER,
    "use_adam_mini": _OPTIMISER,
    "use_muon": _OPTIMISER,
    "use_dft_loss": LOSS,
    "use_asft_loss": LOSS,
    "asft_alpha": LOSS,
    "use_eaft_loss": LOSS,
    "eaft_alpha": LOSS,
    "moe_aux_loss_coef": LOSS,
    "compute_accuracy": "needless here because the report has the metrics of the task",
    "plot_loss": "needless here because report.html draws the losses",
    "print_param_status": LOGGED,
    "use_swanlab": _SWANLAB,
    "swanlab_*": _SWANLAB,
    "fp8*": "no counterpart because precision is bf16 or fp32 here",
    "use_kt": _MEGATRON.replace("Megatron", "KTransformers"),
    "kt_*": _MEGATRON.replace("Megatron", "KTransformers"),
    "use_mca": _MEGATRON,
    "use_hyper_parallel": _MEGATRON.replace("Megatron", "HyperParallel"),
    "hyper_parallel_args": _MEGATRON.replace("Megatron", "HyperParallel"),
    "tensor_model_parallel_size": _MEGATRON,
    "pipeline_model_parallel_size": _MEGATRON,
    "expert_model_parallel_size": _MEGATRON,
    "sequence_parallel": _MEGATRON,
    "bias_activation_fusion": _MEGATRON,
    "apply_rope_fusion": _MEGATRON,
    "use_distributed_optimizer": _MEGATRON,
    "overlap_*": _MEGATRON,
    "moe_*": _MEGATRON,
    "recompute_granularity": _MEGATRON,
    "ray_*": "no counterpart because where a run executes is not the recipe's: see `tunery submit`",
    "master_addr": _trainer.DEVICES,
    "master_port": _trainer.DEVICES,
    "predict_with_generate": _SERVING,
    "infer_backend": _SERVING,
    "infer_dtype": _SERVING,
    "max_new_tokens": _SERVING,
    "do_sample": _SERVING,
    "temperature": _SERVING,
    "top_p": _SERVING,
    "top_k": _SERVING,
    "num_beams": _SERVING,
    "use_kv_cache": _SERVING,
    "enable_torch_profiler": LOGGED,
    "profiler_*": LOGGED,
    "hf_hub_token": "no counterpart because secrets stay in the environment (HF_TOKEN)",
    "ms_hub_token": "no counterpart because models come from the Hugging Face hub",
    "om_hub_token": "no counterpart because models come from the Hugging Face hub",
}


def recognises(mapping: Mapping[str, Any]) -> int:
    """Keys that only LLaMA-Factory has."""
    return len(MARKS & set(mapping))


def convert(reader: Reader) -> dict[str, Any]:
    """The recipe of a training file. Raises InputError for a file that merges, generates or trains a reward model."""
    _check_job(reader)
    recipe = draft(reader.text("model_name_or_path"), _datasets(reader, "dataset"), reader)
    stage = _task(reader, recipe)
    _validation_rows(reader, recipe)
    recipe["method"] = _method(reader)
    length = reader.integer("cutoff_len", low=2)
    if length:
        recipe["train"]["max_length"] = length
    else:
        default(reader, recipe, "max_length", 2048, "LLaMA-Factory")
    if start := reader.texts("adapter_name_or_path"):
        recipe["train"]["init_from"] = start[0]
        if len(start) > 1:
            reader.leave("adapter_name_or_path", "no counterpart because a run begins from one adapter; the first is written")
    processes = reader.integer("ray_num_workers", low=1)
    sharding = _sharding.deepspeed(reader) or _sharding.fsdp(reader, recipe)
    reader.leave_known({f"fsdp_{key}": reason for key, reason in _sharding.FSDP.items()})
    _sharding.write(recipe, _sharding.with_processes(sharding, processes))
    _trainer.precision(reader, recipe, dtypes=("compute_dtype", "torch_dtype"))
    packing, neat = reader.flag("packing"), reader.flag("neat_packing")
    packs = neat or (packing if packing is not None else stage == "pt")
    if packing and not neat:
        reader.note("packing: rows of a pack see each other in LLaMA-Factory without `neat_packing`; in Tunery they never do")
    _TRAINER.read(reader, recipe, processes or 1, packed=recipe["train"]["max_length"] if packs else None)
    reader.leave_known(KNOWN)
    return recipe


def _check_job(reader: Reader) -> None:
    training = reader.flag("do_train")
    for key, what in (("export_dir", "merges or quantises a model"), ("do_predict", "generates answers")):
        if reader.peek(key) and not training:
            raise reader.error(key, f"this file {what} and trains nothing, so there is no recipe in it; name a training file")
    if training is False or ("infer_backend" in reader and not training):
        raise reader.error("do_train", "this file trains nothing, so there is no recipe in it; name a training file")
    reader.leave("do_predict", "needless here because data.test decides what is evaluated")


def _task(reader: Reader, recipe: dict[str, Any]) -> str:
    stage = reader.text("stage") or "sft"
    if stage in ("rm", "ppo"):
        what = "trains a reward model" if stage == "rm" else "is reinforcement learning"
        raise reader.error("stage", f"`{stage}` {what}, which Tunery has no task for; nearest is dpo (task: preference)")
    if stage == "pt":
        recipe["task"] = "text"
    elif stage in ("dpo", "kto"):
        given = (reader.text("pref_loss") or "sigmoid") if stage == "dpo" else "kto"
        loss = {"sigmoid": "dpo", "kto": "kto", "orpo": "orpo", "simpo": "simpo"}.get(given)
        if loss is None:
            reader.leave("pref_loss", "no counterpart because the losses are dpo, orpo, kto and simpo; dpo is written")
        beta = reader.number("pref_beta")
        recipe["task"] = {"name": "preference", "loss": loss or "dpo", "beta": 0.1 if beta is None else beta}
        for key, option, wanted in (
            ("simpo_gamma", "gamma", "simpo"),
            ("dpo_label_smoothing", "label_smoothing", "dpo"),
            ("kto_chosen_weight", "desirable_weight", "kto"),
            ("kto_rejected_weight", "undesirable_weight", "kto"),
        ):
            value = reader.number(key)
            if value is not None and loss == wanted:
                recipe["task"][option] = value
            else:
                reader.leave(key, f"needless here because the loss is {loss or 'dpo'}")
        weight = reader.number("pref_ftx")
        if weight and loss == "dpo":
            recipe["task"]["nll_weight"] = weight
            reader.note("task.nll_weight: a mean over the answers' tokens here; LLaMA-Factory's is a mean of each answer's mean")
        else:
            reader.leave("pref_ftx", KNOWN["pref_ftx"] if weight else OFF)
        kto_pairs(reader, recipe)
        if loss == "simpo" and "gamma" not in recipe["task"]:
            recipe["task"]["gamma"] = 0.5
    elif stage != "sft":
        raise reader.error("stage", f"`{stage}` is no stage of LLaMA-Factory that is known; known are pt, sft, dpo, kto")
    return stage


def _validation_rows(reader: Reader, recipe: dict[str, Any]) -> None:
    rows = _datasets(reader, "eval_dataset")
    if rows:
        recipe["data"]["valid"] = rows[0]
        if len(rows) > 1:
            reader.leave("eval_dataset", f"no counterpart because validation rows are one file; {rows[0]} is written")
    size = reader.number("val_size")
    if size and size < 1:
        recipe["data"]["valid"] = size
    elif size:
        reader.leave("val_size", "no counterpart because data.valid is a share of the rows or a file, not a number of rows")


def _method(reader: Reader) -> dict[str, Any] | str:
    kind = reader.text("finetuning_type") or "lora"
    bits, how = reader.integer("quantization_bit"), (reader.text("quantization_method") or "bnb").lower()
    four_bit = bits == 4 and how in ("bnb", "bitsandbytes") and kind == "lora"
    if bits and not four_bit:
        reader.leave("quantization_bit", "no counterpart because a quantised base is 4-bit NF4 with a LoRA on it here (method: qlora)")
        reader.leave("quantization_method", "no counterpart because a base is quantised by bitsandbytes here")
    double = reader.flag("double_quantization")
    if (reader.text("quantization_type") or "nf4") != "nf4":
        reader.leave("quantization_type", "no counterpart because 4-bit values are NF4 here")
    if kind == "full":
        _leave_adapter(reader)
        return "full"
    if kind == "oft":
        targets = _adapter.targets(reader, "oft_target") or "all-linear"
        found: dict[str, Any] = {"name": "oft", "block_size": reader.integer("oft_block_size", low=2) or 32, "targets": targets}
        if dropout := reader.number("module_dropout"):
            found["module_dropout"] = dropout
        reader.leave_known({"oft_rank": "no counterpart because the size of a block sets the number of blocks"})
        return found
    if kind != "lora":
        raise reader.error(
            "finetuning_type", f"`{kind}` has no counterpart: layers are trained by an adapter or all of them; choose lora or full"
        )
    rank = reader.integer("lora_rank", low=1) or 8
    lora = Lora(
        rank=rank,
        alpha=reader.number("lora_alpha") or rank * 2,
        dropout=reader.number("lora_dropout") or 0.0,
        targets=_adapter.targets(reader, "lora_target"),
        rslora=bool(reader.flag("use_rslora")),
        dora=bool(reader.flag("use_dora")),
        four_bit=four_bit,
        double=double is not False,
        loraplus_ratio=reader.number("loraplus_lr_ratio"),
    )
    if reader.flag("pissa_init"):
        if lora.dora or lora.four_bit:
            reader.leave("pissa_init", "no counterpart because PiSSA starts a plain LoRA (method: lora)")
        else:
            lora.start = "pissa"
    return lora.method()


def _leave_adapter(reader: Reader) -> None:
    keys = ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora", "pissa_init", "loraplus_lr_ratio")
    reader.leave_known(dict.fromkeys(keys, "needless here because finetuning_type is full"))


def _datasets(reader: Reader, key: str) -> list[str]:
    """The files behind LLaMA-Factory's names: as `dataset_info.json` says where it is found, else a guess that is noted."""
    names = reader.texts(key)
    where = reader.text("dataset_dir") or "data"
    if where.upper() == "ONLINE":
        return [hub_source(reader, name) for name in names]
    if where.startswith("REMOTE:"):
        reader.leave("dataset_dir", "no counterpart because data sets are named one by one; write the hub names of these")
        where = "data"
    known = beside(reader.folder, f"{where}/dataset_info.json") or {}
    found = []
    for name in names:
        entry = known.get(name)
        if isinstance(entry, Mapping):
            found.append(_source(reader, entry, where))
            odd = sorted(set(entry) - {"file_name", "hf_hub_url", "subset", "split", "formatting", "ranking"})
            if odd:
                reader.note(f"data: dataset_info.json says more of {name} ({', '.join(odd)}); Tunery knows columns by fixed names")
        elif name.lower().endswith((".json", ".jsonl", ".csv", ".parquet")):
            found.append(name)
        else:
            found.append(f"{where}/{name}.json")
            reader.note(f"data: {name} is a name in {where}/dataset_info.json, which is not beside the file; {found[-1]} is a guess")
    return found


def _source(reader: Reader, entry: Mapping[str, Any], where: str) -> str:
    if isinstance(entry.get("hf_hub_url"), str):
        return hub_source(reader, entry["hf_hub_url"], entry.get("subset"), entry.get("split"))
    return f"{where}/{entry.get('file_name')}"
