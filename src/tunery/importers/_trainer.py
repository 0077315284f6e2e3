"""The training loop's settings in the words of transformers' `TrainingArguments`, which most tools share.

Their defaults are written out where Tunery's differ, so that the recipe trains what the file would have trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunery.importers._adapter import whole
from tunery.importers._draft import TRACKERS, default
from tunery.importers._draft import track as write_trackers
from tunery.importers._reader import Reader

RUN = "needless here because the run directory is named with `tunery train --run`"
LOGGED = "needless here because every step is logged"
SPEED = "needless here because it changes speed or memory, not what is learned, and Tunery chooses"
DEVICES = "needless here because Tunery starts and joins the processes itself"
LOADING = "needless here because rows are tokenised once, before training"
LOSS = "no counterpart because the loss is the plain cross-entropy of the supervised tokens"
HUB = "no counterpart because publishing is decided after a look at the report: see `export` in the recipe's reference"
CHECKPOINTS = "needless here because a run keeps its newest and its best checkpoints, each whole"
BATCHES = "needless here because Tunery orders the rows by the seed and packs them by length"
SAVING = "needless here because checkpoints serve only to resume; train.checkpoint_every sets how often, in steps"
EVALUATION = "needless here because validation batches are made as large as they fit"
NO_VALID = "needless here because the file names no validation rows"
CODE = "no counterpart because code from a model's or data set's repository is never run"
KERNEL = "needless here because it is a kernel for speed; the result is the same"

KNOWN: Mapping[str, str] = {
    "output_dir": RUN,
    "overwrite_output_dir": RUN,
    "run_name": RUN,
    "project": RUN,
    "logging_*": LOGGED,
    "log_*": LOGGED,
    "disable_tqdm": LOGGED,
    "include_*": LOGGED,
    "prediction_loss_only": EVALUATION,
    "per_device_eval_batch_size": EVALUATION,
    "eval_accumulation_steps": EVALUATION,
    "batch_eval_metrics": EVALUATION,
    "bf16_full_eval": EVALUATION,
    "fp16_full_eval": EVALUATION,
    "eval_do_concat_batches": EVALUATION,
    "eval_delay": "no counterpart because validation begins with the first epoch or step that is due",
    "eval_on_start": "no counterpart because validation begins after the first steps; the report has the figures of the base model",
    "metric_for_best_model": "needless here because the best checkpoint is the one with the lowest `valid_loss`",
    "greater_is_better": "needless here because the best checkpoint is the one with the lowest `valid_loss`",
    "load_best_model_at_end": "no counterpart because the best weights are kept only with train.early_stopping; add it for that",
    "save_total_limit": CHECKPOINTS,
    "save_only_model": CHECKPOINTS,
    "save_safetensors": "needless here because weights are only ever written as safetensors",
    "save_on_each_node": CHECKPOINTS,
    "resume_from_checkpoint": "no counterpart because a run goes on with `tunery resume RUN`; train.init_from begins from another's adapter",
    "ignore_data_skip": "needless here because a resumed run sees the very rows that it would have seen",
    "push_to_hub": HUB,
    "hub_*": HUB,
    "dataloader_*": LOADING,
    "remove_unused_columns": "needless here because columns that make no row are ignored",
    "group_by_length": BATCHES,
    "length_column_name": BATCHES,
    "train_sampling_strategy": BATCHES,
    "label_names": LOADING,
    "ddp_*": DEVICES,
    "local_rank": DEVICES,
    "accelerator_config": DEVICES,
    "device_map": DEVICES,
    "average_tokens_across_devices": "needless here because the loss is always normalised over all processes",
    "full_determinism": "needless here because a run is deterministic as it is",
    "use_cpu": "needless here because the device is chosen from what is there",
    "auto_find_batch_size": SPEED,
    "gradient_checkpointing_kwargs": SPEED,
    "activation_offloading": SPEED,
    "torch_compile*": SPEED,
    "torch_empty_cache_steps": SPEED,
    "tf32": SPEED,
    "use_liger_kernel": KERNEL,
    "liger_kernel_config": KERNEL,
    "use_cache": SPEED,
    "skip_memory_metrics": LOGGED,
    "debug": LOGGED,
    "trackio_*": LOGGED,
    "do_train": "needless here because training is what a recipe does",
    "do_eval": "needless here because data.valid and data.test decide it",
    "neftune_noise_alpha": "no counterpart because no noise is added to embeddings",
    "label_smoothing_factor": LOSS,
    "lr_scheduler_kwargs": "no counterpart because the schedules here have no settings of their own: they end at zero",
    "optim_args": "no counterpart because AdamW is the optimiser, with its usual settings",
    "optim_target_modules": "no counterpart because AdamW is the optimiser, with its usual settings",
    "parallelism_config": "no counterpart because tensor, context and expert parallelism are not there: see `sharding`",
    "full_eval": EVALUATION,
}

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
_ADAMW = {"adamw", "adamw_torch", "adamw_hf", "adamw_torch_fused", "adamw_torch_xla", "adamw_apex_fused", "adamw_torch_npu_fused"}
_ADAMW |= {"paged_adamw_32bit", "paged_adamw"}  # where the state lies is no matter of what is learned
_ADAMW_SETTINGS = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}


@dataclass(frozen=True)
class Trainer:
    """One tool's words and defaults. `words` maps transformers' name of a key to the tool's own, where it has another."""

    tool: str
    epochs: float = 3.0
    learning_rate: float | None = 5e-5
    schedule: str = "linear"
    warmup: float = 0.0
    rows: int = 8
    accumulation: int = 1
    words: Mapping[str, str] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """The tool's own word for a key of transformers."""
        return self.words.get(name, name)

    def read(self, reader: Reader, recipe: dict[str, Any], processes: int = 1, packed: int | None = None) -> None:
        """Everything about the loop into `recipe["train"]`. `packed`: the length of a pack, when a row of a batch is a pack of rows."""
        train = recipe["train"]
        self._length(reader, recipe)
        self._step(reader, recipe, processes, packed)
        self._rate(reader, recipe)
        for name, key in (("weight_decay", "weight_decay"), ("max_grad_norm", "clip")):
            value = reader.number(self.key(name))
            if value is not None:
                train[key] = (whole(value) or None) if key == "clip" else whole(value)
        self._optimizer(reader)
        checkpointing = reader.peek(self.key("gradient_checkpointing"))
        if checkpointing is not None and not isinstance(checkpointing, str):
            train["gradient_checkpointing"] = reader.flag(self.key("gradient_checkpointing"))
        self._validation(reader, recipe)
        self._saving(reader, recipe)
        seed = reader.integer("seed")
        if seed is not None:
            train["seed"] = seed
        if reader.peek("data_seed") == seed:
            reader.take("data_seed")
        reader.leave("data_seed", "no counterpart because one seed serves the whole run (train.seed)")
        self._trackers(reader, recipe)
        reader.leave_known(KNOWN)

    def _length(self, reader: Reader, recipe: dict[str, Any]) -> None:
        epochs, steps = reader.number(self.key("num_train_epochs")), reader.number("max_steps", low=-1)
        if steps is not None and steps > 0:
            recipe["train"]["max_steps"] = int(steps)
            reader.leave(self.key("num_train_epochs"), "needless here because max_steps decides how long the run is")
        elif epochs:
            recipe["train"]["epochs"] = whole(epochs)
        elif self.epochs != 1:
            default(reader, recipe, "epochs", whole(self.epochs), self.tool)

    def _step(self, reader: Reader, recipe: dict[str, Any], processes: int, packed: int | None) -> None:
        names = self.key("per_device_train_batch_size"), self.key("gradient_accumulation_steps")
        auto = [n for n in names if reader.peek(n) == "auto"]
        for name in auto:
            reader.leave(name, "needless here because its value is auto")
        rows, accumulation = (reader.integer(n, low=1) if n not in auto else None for n in names)
        total = (rows or self.rows) * (accumulation or self.accumulation) * processes
        if packed:
            recipe["train"]["tokens_per_step"] = total * packed
            reader.note(f"train.tokens_per_step: {total} packs of {packed} tokens, which is what a batch of packed rows holds")
        else:
            recipe["train"]["rows_per_step"] = total
            if not rows:
                reader.note(f"train.rows_per_step: {self.tool}'s default of {self.rows} rows a device")
        if "sharding" in recipe and processes == 1:
            reader.note("the file does not say how many processes there are: multiply the size of a step by their number")

    def _rate(self, reader: Reader, recipe: dict[str, Any]) -> None:
        train = recipe["train"]
        rate = reader.number("learning_rate")
        if rate:
            train["learning_rate"] = rate
        elif self.learning_rate is not None:
            default(reader, recipe, "learning_rate", self.learning_rate, self.tool)
        word = self.key("lr_scheduler_type")
        given = (reader.text(word) or "").lower()
        if given and given not in _SCHEDULES:
            reader.leave(word, f"no counterpart because the schedules here are cosine, linear and constant; {_nearest(given)} is written")
        chosen = _SCHEDULES.get(given) or (_nearest(given) if given else self.schedule)
        if given:
            train["schedule"] = chosen
        elif chosen != "cosine":
            default(reader, recipe, "schedule", chosen, self.tool)
        self._warmup(reader, recipe, without=(given or self.schedule) == "constant")

    def _warmup(self, reader: Reader, recipe: dict[str, Any], without: bool) -> None:
        train = recipe["train"]
        ratio, steps = reader.number("warmup_ratio"), reader.number("warmup_steps")
        if without:
            for key in ("warmup_ratio", "warmup_steps"):
                reader.leave(key, "needless here because the schedule `constant` has no warm-up")
            train["warmup"] = 0
        elif steps and steps < 1:
            train["warmup"] = steps
        elif steps and train.get("max_steps"):
            train["warmup"] = min(0.99, round(steps / train["max_steps"], 4))
        elif ratio is not None:
            train["warmup"] = whole(ratio)
        if steps and steps >= 1 and not without and not train.get("max_steps"):
            reader.leave(
                "warmup_steps", "no counterpart because warm-up is a share of the steps (train.warmup), whose number is not in the file"
            )
        if ratio is not None and steps and train.get("warmup") != ratio:
            reader.leave("warmup_ratio", "needless here because warmup_steps comes before it")
        if "warmup" not in train and not steps:
            default(reader, recipe, "warmup", whole(self.warmup), self.tool)

    def _optimizer(self, reader: Reader) -> None:
        word = self.key("optim")
        optimizer = (reader.text(word) or "adamw").lower()
        if "adamw" in optimizer and optimizer not in _ADAMW:
            reader.leave(word, "no counterpart because AdamW keeps its state in float32 here; the update is the same, the memory is not")
        elif optimizer not in _ADAMW:
            reader.leave(word, "no counterpart because the optimiser is AdamW")
        for name, usual in _ADAMW_SETTINGS.items():
            word = self.key(name)
            if reader.number(word) != usual:
                reader.leave(word, f"no counterpart because AdamW has its usual settings here ({name} {usual:g})")

    def _validation(self, reader: Reader, recipe: dict[str, Any]) -> None:
        words = [w for w in ("eval_strategy", "evaluation_strategy") if w in reader]
        patience = [w for w in (self.key("early_stopping_patience"),) if w in reader]
        if "valid" not in recipe["data"]:
            for word in (*words, "eval_steps", *patience):
                reader.leave(word, NO_VALID)
            return
        strategy = next((str(reader.peek(w)).lower() for w in words), "")
        for word in words:
            reader.take(word)
            if strategy in ("no", "false"):
                reader.leave(word, "no counterpart because validation rows are used at least once an epoch")
        steps = reader.number("eval_steps")
        if steps is not None and strategy == "epoch":
            reader.leave("eval_steps", "needless here because validation is once an epoch")
        elif steps and steps >= 1:
            recipe["train"]["validate_every"] = int(steps)
        elif steps:
            reader.leave("eval_steps", "no counterpart because validate_every counts steps, not a share of the run")
        for word in patience:
            stop = reader.integer(word)
            if stop:
                recipe["train"]["early_stopping"] = stop
        if patience and "load_best_model_at_end" in reader:
            reader.flag("load_best_model_at_end")

    def _saving(self, reader: Reader, recipe: dict[str, Any]) -> None:
        strategy = (reader.text("save_strategy") or "steps").lower()
        if strategy not in ("steps", "false"):
            reader.leave("save_strategy", SAVING)
            reader.leave("save_steps", "needless here because the saving is not by steps")
            return
        steps = reader.number("save_steps")
        if steps and steps >= 1:
            recipe["train"]["checkpoint_every"] = int(steps)
        elif steps:
            reader.leave("save_steps", SAVING)

    def _trackers(self, reader: Reader, recipe: dict[str, Any]) -> None:
        value = reader.peek("report_to")
        named = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        track = [name for name in named if name in TRACKERS]
        if track and write_trackers(reader, recipe, list(track)):
            reader.take("report_to")
        if set(map(str, named)) <= {"none"}:
            reader.leave("report_to", "needless here because no tracker is asked for")
        elif len(track) < len(named):
            reader.leave(
                "report_to", f"no counterpart because the trackers are {', '.join(TRACKERS)}; those of them that are named are written"
            )
        else:
            reader.leave_known({"report_to": "no counterpart because a recipe names no trackers"})


def precision(reader: Reader, recipe: dict[str, Any], dtypes: tuple[str, ...] = (), no: tuple[str, ...] = ("bf16", "fp16")) -> None:
    """bf16, fp16 and the dtype that the model is loaded with, as one setting. `dtypes`: the keys that hold the dtype, the first set wins."""
    dtype = ""
    for key in dtypes:
        found = (reader.text(key) or "").removeprefix("torch.").lower()
        if found in ("float16", "fp16", "half"):
            reader.leave(key, "no counterpart because precision is bf16 or fp32 here")
        elif found in ("auto", ""):
            reader.leave(key, "needless here because Tunery chooses the precision from the device")
        dtype = dtype or found
    bf16_key, fp16_key = no
    bf16 = reader.peek(bf16_key)
    if isinstance(bf16, str) and bf16.lower() == "auto":
        reader.leave(bf16_key, "needless here because train.precision is auto")
        bf16 = None
    else:
        bf16 = reader.flag(bf16_key)
    fp16 = reader.flag(fp16_key)
    if fp16:
        reader.leave(fp16_key, "no counterpart because precision is bf16 or fp32 here")
    elif fp16_key in reader:
        reader.leave(fp16_key, "needless here because it is off")
    if bf16 or (bf16 is None and dtype in ("bfloat16", "bf16")):
        recipe["train"]["precision"] = "bf16"
    elif not fp16 and (
        (bf16 is False and dtype in ("", "float32", "fp32", "float")) or (bf16 is None and dtype in ("float32", "fp32", "float"))
    ):
        recipe["train"]["precision"] = "fp32"
    elif bf16 is False:
        reader.leave(bf16_key, OFF_BF16)


OFF_BF16 = "needless here because it is off; the precision is chosen from the device"


def _nearest(schedule: str) -> str:
    return "cosine" if schedule.startswith("cosine") else "linear" if schedule.startswith(("linear", "polynomial")) else "constant"
