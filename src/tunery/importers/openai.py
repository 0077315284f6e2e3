"""OpenAI's fine-tuning job: the JSON of `POST /v1/fine_tuning/jobs`, or the job that comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery import methods
from tunery.importers._draft import TRACKERS, draft, track
from tunery.importers._reader import Reader

SUMMARY = "the JSON of an OpenAI or Azure OpenAI fine-tuning job"
MARKS = frozenset({"training_file", "validation_file", "hyperparameters"})
AUTO = "needless here because its value is auto"
_STATE = "needless here because it is the state of a job, not what was asked for"
KNOWN: Mapping[str, str] = {
    "suffix": "no counterpart because a run is named with `tunery train --run`",
    "metadata": "no counterpart because a run is named with `tunery train --run`",
    "trainingType": "no counterpart because where a run executes is not the recipe's: see `tunery submit`",
    **dict.fromkeys(
        (
            *("id", "object", "created_at", "finished_at", "status", "fine_tuned_model", "organization_id", "result_files"),
            *("trained_tokens", "error", "user_provided_suffix", "estimated_finish", "events"),
        ),
        _STATE,
    ),
}


def recognises(mapping: Mapping[str, Any]) -> int:
    """A job names its file as `training_file`."""
    return 2 * ("training_file" in mapping) + len(MARKS & set(mapping)) if "training_file" in mapping else 0


def convert(reader: Reader) -> dict[str, Any]:
    """The recipe of a job. Raises InputError for reinforcement fine-tuning."""
    model = reader.text("model")
    recipe = draft(model, reader.text("training_file"), reader)
    if model and "/" not in model:
        reader.note(f"model: {model} is OpenAI's; write a model that Tunery can load, from the catalogue or the hub")
    if rows := reader.text("validation_file"):
        recipe["data"]["valid"] = rows
    if any(str(name).startswith("file-") for name in recipe["data"].values()):
        reader.note("data: an id of an uploaded file; write the JSONL file's path")
    recipe["method"] = "lora"
    reader.note("method: OpenAI does not say how it trains; Tunery's lora with its defaults is written")
    chosen = reader.inside("method")
    kind = chosen.text("type") or "supervised"
    if kind not in ("supervised", "dpo"):
        raise chosen.error("type", f"`{kind}` has no counterpart; Tunery has supervised and dpo (task: preference)")
    for other in ("supervised", "dpo", "reinforcement"):
        if other != kind:
            chosen.leave(other, f"needless here because the method's type is {kind}")
    if kind == "dpo":
        recipe["task"] = {"name": "preference", "loss": "dpo"}
    settings = chosen.inside(kind).inside("hyperparameters")
    older = reader.inside("hyperparameters")
    _settings(settings, recipe)
    if settings.mapping:
        older.leave_known(dict.fromkeys(older.mapping, "needless here because `method` comes before it"))
    else:
        _settings(older, recipe)
    seed = reader.integer("seed")
    if seed is not None:
        recipe["train"]["seed"] = seed
    _integrations(reader, recipe)
    reader.leave_known(KNOWN)
    return recipe


def _settings(reader: Reader, recipe: dict[str, Any]) -> None:
    given = {key: reader.peek(key) for key in ("n_epochs", "batch_size", "learning_rate_multiplier", "beta")}
    for key in [k for k, v in given.items() if v == "auto"]:
        reader.leave(key, AUTO)
    if given["n_epochs"] not in (None, "auto"):
        recipe["train"]["epochs"] = reader.integer("n_epochs", low=1)
    if given["batch_size"] not in (None, "auto"):
        recipe["train"]["rows_per_step"] = reader.integer("batch_size", low=1)
    if given["learning_rate_multiplier"] not in (None, "auto"):
        multiplier = reader.number("learning_rate_multiplier") or 1.0
        base = methods.get("lora").LEARNING_RATE[0]
        recipe["train"]["learning_rate"] = float(f"{multiplier * base:.6g}")
        reader.note(
            f"train.learning_rate: {multiplier:g} × {base:g}, Tunery's own rate for lora; OpenAI does not publish the rate it multiplies"
        )
    if given["beta"] not in (None, "auto"):
        if isinstance(recipe["task"], dict):
            recipe["task"]["beta"] = reader.number("beta")
        else:
            reader.leave("beta", "needless here because the method's type is not dpo")


def _integrations(reader: Reader, recipe: dict[str, Any]) -> None:
    for each in reader.each("integrations"):
        settings = each.inside("wandb")
        named = {"name": "wandb", **{key: settings.text(key) for key in ("project", "entity") if key in settings}}
        if each.text("type") != "wandb" or not track(reader, recipe, [named]):
            each.leave("type", f"no counterpart because a recipe's trackers are {', '.join(TRACKERS)}")
            for key in ("project", "entity"):
                settings.leave(key, "no counterpart because its tracker is not in the recipe")
        for key in ("name", "tags"):
            settings.leave(key, "no counterpart because a run is named with `tunery train --run`")
