"""A recipe made whole: every name looked up, every open setting decided, each decision with its reason.

Nothing heavy is loaded here but the model's config. What comes out needs no further decision by any stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import export, methods, metrics, tasks
from tunery.data.rows import read_rows
from tunery.errors import InputError
from tunery.methods import Method
from tunery.models.load import context_length
from tunery.models.source import local_folder
from tunery.progress import Progress
from tunery.recipe import Named, Recipe, options_of
from tunery.run import Run
from tunery.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tunery.train.loop import Settings

MAX_LENGTH = 1024
TOKENS_PER_STEP = 4096
SHARDING = ("none",)


@dataclass(frozen=True)
class Resolved:
    """A recipe with nothing left open. `reasons` says, for each setting that was decided here, why."""

    recipe: Recipe
    task: Task
    task_options: Any
    method: Method
    options: Any
    exports: tuple[tuple[str, Any], ...]
    folder: Path
    context: int
    device: str
    dtype: str
    settings: Settings
    share_prefixes: bool
    reasons: Mapping[str, str]

    def renderer(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """How the task makes rows into sequences."""
        return self.task.renderer(tokenizer, self.task_options)


def check_names(recipe: Recipe, source: str = "recipe", lines: Mapping[tuple[str, ...], int] | None = None) -> Any:
    """The method's options, once every name in the recipe is known and fits the others. Needs no model. Raises InputError."""
    task, _ = tasks.of(recipe.task, source, lines)
    method = methods.get(recipe.method.name)
    for name in recipe.evaluate.metrics or ():
        if not task.ANSWERS and not isinstance(metrics.get(name), metrics.LikelihoodMetric):
            raise InputError(
                f"evaluate.metrics: `{name}` compares answers, and the task `{recipe.task.name}` has none; choose loss, perplexity or bits_per_byte"
            )
        metrics.get(name)
    if recipe.evaluate.metrics is not None and not recipe.evaluate.metrics:
        raise InputError("evaluate.metrics: the list is empty; name a metric, or leave the key out to have them chosen")
    if recipe.sharding.name not in SHARDING:
        raise InputError(f"sharding `{recipe.sharding.name}` is not known; known: {', '.join(SHARDING)}")
    if recipe.sharding.options:
        raise InputError("sharding: `none` takes no options; leave them out")
    for n, chosen in enumerate(recipe.export):
        exporter = export.get(chosen.name)
        options_of(chosen, exporter.Options, "export", source, lines)
        exporter.require()
        if chosen.name in {e.name for e in recipe.export[:n]}:
            raise InputError(f"export: `{chosen.name}` is named twice; keep one, and make others with `tunery export`")
    if not task.ANSWERS and recipe.evaluate.max_new_tokens is not None:
        raise InputError(f"evaluate.max_new_tokens: the task `{recipe.task.name}` generates no answers; leave it out")
    if recipe.train.early_stopping is not None and recipe.data.valid is None:
        raise InputError("train.early_stopping needs validation rows; add data.valid, a file or a share of the training rows such as 0.05")
    if recipe.train.validate_every is not None and recipe.data.valid is None:
        raise InputError("train.validate_every needs validation rows; add data.valid, a file or a share of the training rows such as 0.05")
    return options_of(recipe.method, method.Options, "method", source, lines)


def resolve(recipe: Recipe, progress: Progress, source: str = "recipe", lines: Mapping[tuple[str, ...], int] | None = None) -> Resolved:
    """Look everything up and decide what was left open. Raises InputError, MissingModelError."""
    options = check_names(recipe, source, lines)
    folder = local_folder(recipe.model, progress.say)
    context = context_length(folder)

    import torch

    from tunery.train import precision
    from tunery.train.loop import Settings

    method = methods.get(recipe.method.name)
    reasons: dict[str, str] = {}
    train = recipe.train
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, reasons["train.precision"] = precision.choose(train.precision, device)
    decided: dict[str, Any] = {"precision": {"bfloat16": "bf16", "float32": "fp32"}[dtype]}
    if train.learning_rate is None:
        decided["learning_rate"], reason = method.LEARNING_RATE
        reasons["train.learning_rate"] = f"auto: {decided['learning_rate']:g}, {reason}"
    if train.max_length is None:
        decided["max_length"] = min(context, MAX_LENGTH)
        why = "the model's context" if context <= MAX_LENGTH else "long enough for most rows, and what is longer is counted"
        reasons["train.max_length"] = f"auto: {decided['max_length']}, {why}"
    elif train.max_length > context:
        raise InputError(f"train.max_length: {train.max_length} is longer than the context of {recipe.model}, which is {context}; lower it")
    if train.tokens_per_step is None and train.rows_per_step is None:
        decided["tokens_per_step"] = TOKENS_PER_STEP
        reasons["train.tokens_per_step"] = f"auto: {TOKENS_PER_STEP} tokens a step, a common size for adapters of small models"
    if train.gradient_checkpointing == "auto":
        decided["gradient_checkpointing"] = False
        reasons["train.gradient_checkpointing"] = "auto: off, packs are short, so activations are a small part of the memory"
    if train.init_from:
        method.check_start(learned_in(train.init_from), options)
    train = train.model_copy(update=decided)
    task, task_options = tasks.of(recipe.task, source, lines)
    recipe = recipe.model_copy(update={"train": train, "method": Named(name=recipe.method.name, options=options.model_dump(mode="json"))})
    shared = set(Settings.__dataclass_fields__) & set(type(train).model_fields)
    autocast = method.TRAINS_BASE and dtype == "bfloat16"
    settings = Settings(**{k: getattr(train, k) for k in shared}, autocast=autocast)
    share = getattr(options, "dropout", 0) == 0
    exports = tuple((e.name, options_of(e, export.get(e.name).Options, "export")) for e in recipe.export)
    return Resolved(recipe, task, task_options, method, options, exports, folder, context, device, dtype, settings, share, reasons)


def with_labels(resolved: Resolved, base: Path | None) -> Resolved:
    """With the classes that a task's head has: those that the recipe names, or else those of the training rows, in sorted order."""
    find = getattr(resolved.task, "find_labels", None)
    if find is None or resolved.task_options.labels:
        return resolved
    train = resolved.recipe.data.train
    sources = [train] if isinstance(train, str) else [s.path for s in train]
    # What is wrong with a row is said when the data is prepared.
    rows = (row for source in sources for row in read_rows(source, base, lambda problem: None))
    options = resolved.task_options.model_copy(update={"labels": find(rows)})
    chosen = Named(name=resolved.recipe.task.name, options=options.model_dump(mode="json"))
    return replace(resolved, task_options=options, recipe=resolved.recipe.model_copy(update={"task": chosen}))


def learned_in(where: str) -> Path:
    """The folder that `train.init_from` names: what a run learned, or itself."""
    path = Path(where)
    return Run(path).learned if (path / "recipe.yaml").is_file() else path
