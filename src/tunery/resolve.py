"""A recipe made whole: every name looked up, every open setting decided, each decision with its reason.

Nothing heavy is loaded here but the model's config. What comes out needs no further decision by any stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import combinations, export, methods, metrics, sharding, tasks, trackers
from tunery.data.rows import read_rows
from tunery.errors import InputError
from tunery.export import hub
from tunery.methods import Method
from tunery.models.kind import model_kind
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
    processes: int = 1
    hub: Any = None
    track: tuple[tuple[str, Any], ...] = ()

    def renderer(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """How the task makes rows into sequences."""
        return self.task.renderer(tokenizer, self.task_options)


def check_names(recipe: Recipe, source: str = "recipe", lines: Mapping[tuple[str, ...], int] | None = None) -> Any:
    """The method's options, once every name in the recipe is known and fits the others. Needs no model. Raises InputError."""
    task, _ = tasks.of(recipe.task, source, lines)
    method = methods.get(recipe.method.name)
    recipe, _ = with_exports_that_exist(recipe)
    for name in recipe.evaluate.metrics or ():
        own = getattr(task, "METRICS", ())
        metrics.get(name)
        if task.FORM in ("sequence", "token") and name not in (*own, "loss", "perplexity"):
            raise InputError(
                f"evaluate.metrics: `{name}` is about text, and the task `{recipe.task.name}` chooses labels; choose from {', '.join(own)}, loss"
            )
        if not task.ANSWERS and name not in own and not isinstance(metrics.get(name), metrics.LikelihoodMetric):
            raise InputError(
                f"evaluate.metrics: `{name}` compares answers, and the task `{recipe.task.name}` has none; choose loss, perplexity or bits_per_byte"
            )
    if recipe.evaluate.metrics is not None and not recipe.evaluate.metrics:
        raise InputError("evaluate.metrics: the list is empty; name a metric, or leave the key out to have them chosen")
    sharding.of(recipe.sharding, source, lines)
    require_combination(recipe, source)
    if hasattr(method, "require"):
        method.require()
    for n, chosen in enumerate(recipe.export):
        exporter = export.get(chosen.name)
        export_options = options_of(chosen, exporter.Options, "export", source, lines)
        check_form = getattr(exporter, "check_form", None)
        if check_form is not None:
            check_form(task.FORM, export_options)
        exporter.require(export_options)
        if chosen.name in {e.name for e in recipe.export[:n]}:
            raise InputError(f"export: `{chosen.name}` is named twice; keep one, and make others with `tunery export`")
    if recipe.hub is not None:
        place = options_of(recipe.hub, hub.Options, "export", source, lines)
        if place.form is not None and place.form not in {e.name for e in recipe.export}:
            raise InputError(f"export.hub.form: `{place.form}` is not among the exports; add it to `export`")
        hub.require(place)
    for n, chosen in enumerate(recipe.track):
        tracker = trackers.get(chosen.name)
        tracker.require(options_of(chosen, tracker.Options, "track", source, lines))
        if chosen.name in {t.name for t in recipe.track[:n]}:
            raise InputError(f"track: `{chosen.name}` is named twice; keep one")
    if not task.ANSWERS and recipe.evaluate.max_new_tokens is not None:
        raise InputError(f"evaluate.max_new_tokens: the task `{recipe.task.name}` generates no answers; leave it out")
    if recipe.train.early_stopping is not None and recipe.data.valid is None:
        raise InputError("train.early_stopping needs validation rows; add data.valid, a file or a share of the training rows such as 0.05")
    if recipe.train.validate_every is not None and recipe.data.valid is None:
        raise InputError("train.validate_every needs validation rows; add data.valid, a file or a share of the training rows such as 0.05")
    return options_of(recipe.method, method.Options, "method", source, lines)


def virtual_tokens(method: str, options: Any) -> int:
    """The positions of a model's context that the method takes for itself; 0 for most."""
    count = getattr(methods.get(method), "virtual_tokens", None)
    return count(options) if count else 0


def resolve(
    recipe: Recipe,
    progress: Progress,
    source: str = "recipe",
    lines: Mapping[tuple[str, ...], int] | None = None,
    folder: Path | None = None,
) -> Resolved:
    """Look everything up and decide what was left open. Raises InputError, MissingModelError.

    folder: the model's config.json, where only that is known of it; then the model is not looked for.
    """
    recipe, reasons = with_exports_that_exist(recipe)
    for reason in reasons.values():
        progress.say(reason)
    options = check_names(recipe, source, lines)
    folder = folder or local_folder(recipe.model, progress.say)
    kind = model_kind(folder)
    require_combination(recipe, source, model=kind)
    context = context_length(folder) - virtual_tokens(recipe.method.name, options)

    import torch

    from tunery.train import precision
    from tunery.train.loop import Settings

    method = methods.get(recipe.method.name)
    task, task_options = tasks.of(recipe.task, source, lines)
    if own := getattr(task, "reasons", None):  # its settings are decided here, so they and their reasons stay with the run
        reasons.update({f"task.{key}": why for key, why in own(recipe.task.options).items()})
        chosen = Named(name=recipe.task.name, options=task_options.model_dump(mode="json", exclude_none=True))
        recipe = recipe.model_copy(update={"task": chosen})
    train = recipe.train
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, reasons["train.precision"] = precision.choose(train.precision, device)
    decided: dict[str, Any] = {"precision": {"bfloat16": "bf16", "float32": "fp32"}[dtype]}
    require_combination(recipe, source, model=kind, device=device, precision=decided["precision"])
    if train.learning_rate is None:
        rate, reason = method.LEARNING_RATE
        factor, why = getattr(task, "RATE_FACTOR", (1.0, ""))
        decided["learning_rate"] = float(f"{rate * factor:.3g}")
        reasons["train.learning_rate"] = f"auto: {decided['learning_rate']:g}, {reason}" + (f"; {why}" if why else "")
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
    recipe, count, reason = _processes(recipe, train, torch.cuda.device_count() if device == "cuda" else 0, progress)
    if recipe.sharding.name != "none":
        reasons["sharding.processes"] = f"{count}, {reason}"
    if task.FORM in ("sequence", "token"):
        reasons["evaluate.forgetting_tokens"] = "auto: 0, a head writes no text, so there is no likelihood of general text to compare"
        recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"forgetting_tokens": 0})})
    recipe = recipe.model_copy(update={"train": train, "method": Named(name=recipe.method.name, options=options.model_dump(mode="json"))})
    shared = set(Settings.__dataclass_fields__) & set(type(train).model_fields)
    autocast = method.TRAINS_BASE and dtype == "bfloat16"
    settings = Settings(**{k: getattr(train, k) for k in shared}, autocast=autocast)
    share = getattr(options, "dropout", 0) == 0
    exports = tuple((e.name, options_of(e, export.get(e.name).Options, "export")) for e in recipe.export)
    place = options_of(recipe.hub, hub.Options, "export") if recipe.hub is not None else None
    track = tuple((t.name, options_of(t, trackers.get(t.name).Options, "track")) for t in recipe.track)
    return Resolved(
        recipe, task, task_options, method, options, exports, folder, context, device, dtype, settings, share, reasons, count, place, track
    )


def _processes(recipe: Recipe, train: Any, gpus: int, progress: Progress) -> tuple[Recipe, int, str]:
    """The recipe with its sharding's own settings checked and taken in, how many processes train, and why. `train` is resolved."""
    stage, options = sharding.of(recipe.sharding)
    count, reason = sharding.processes(recipe.sharding, options, gpus)
    if (settle := getattr(stage, "settle", None)) is not None:
        options, notes = settle(options, train)
        for note in notes:
            progress.say(note)
        chosen = Named(name=recipe.sharding.name, options=options.model_dump(mode="json", exclude_defaults=True))
        recipe = recipe.model_copy(update={"sharding": chosen})
    return recipe, count, reason


def require_combination(recipe: Recipe, source: str, **known: str) -> None:
    """Raise InputError when the choices do not go together, as far as they are known: `known` holds the axes that no recipe names."""
    if recipe.train.precision != "auto":
        known = {"precision": recipe.train.precision, **known}
    task, _ = tasks.of(recipe.task, source)
    name, called = recipe.task.name, {}
    if task.FORM != tasks.get(name).FORM:  # a variant, such as labels as words: it combines as the tasks of its own form do
        called = {"task": f"`task: {{name: {name}, {', '.join(f'{k}: {v}' for k, v in recipe.task.options.items())}}}`"}
        name = next(other for other in tasks.names() if tasks.get(other).FORM == task.FORM)
    choice = {"task": name, "method": recipe.method.name, "sharding": recipe.sharding.name, **known}
    for exported in recipe.export or (None,):
        combinations.require({**choice, "export": exported.name} if exported else choice, source, called)


def with_exports_that_exist(recipe: Recipe) -> tuple[Recipe, dict[str, str]]:
    """A method that trains the base itself leaves no adapter: `merged` is made in its place, and the reason says so."""
    name = recipe.method.name
    if methods.get(name).SAVES == "adapter" or not any(e.name in combinations.REPLACED for e in recipe.export):
        return recipe, {}
    names = dict.fromkeys(combinations.REPLACED.get(e.name, e.name) for e in recipe.export)
    chosen = {e.name: e for e in recipe.export}
    exports = tuple(chosen.get(n, Named(name=n)) for n in names)
    reason = f"export: `merged` in place of `adapter`, since `{name}` trains the base's own weights and leaves no adapter"
    return recipe.model_copy(update={"export": exports}), {"export": reason}


def with_labels(resolved: Resolved, base: Path | None) -> Resolved:
    """With the classes that a task's head has: those that the recipe names, or else those of the training rows, in sorted order."""
    find = getattr(resolved.task, "find_labels", None)
    if find is None or resolved.task_options.labels:
        return resolved
    train = resolved.recipe.data.train
    sources = [train] if isinstance(train, str) else [s.path for s in train]
    # What is wrong with a row is said when the data is prepared.
    rows = (row for source in sources for row in read_rows(source, base, lambda problem: None))
    options = resolved.task_options.model_copy(update={"labels": find(rows, resolved.task_options)})
    chosen = Named(name=resolved.recipe.task.name, options=options.model_dump(mode="json"))
    return replace(resolved, task_options=options, recipe=resolved.recipe.model_copy(update={"task": chosen}))


def learned_in(where: str) -> Path:
    """The folder that `train.init_from` names: what a run learned, or itself."""
    path = Path(where)
    return Run(path).learned if (path / "recipe.yaml").is_file() else path
