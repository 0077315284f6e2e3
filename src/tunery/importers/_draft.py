"""A recipe in the making: keys in the order that people write them, and what was written without being asked for."""

from __future__ import annotations

from typing import Any

from tunery.importers._reader import Reader
from tunery.recipe import Recipe, Train

MODEL = "MODEL"
DATA = "TRAIN.jsonl"
"""What stands where the file names no model or no data: a recipe needs both."""


def draft(model: str | None, train: list[Any] | str | None, reader: Reader) -> dict[str, Any]:
    """A recipe with its model, its training data, and room for the rest."""
    if not model:
        reader.note(f"the file names no model: write it in place of `{MODEL}`")
    if not train:
        reader.note(f"the file names no training data: write its path in place of `{DATA}`")
    train = train[0] if isinstance(train, list) and len(train) == 1 and isinstance(train[0], str) else train
    return {"model": model or MODEL, "task": "chat", "data": {"train": train or DATA}, "method": "full", "train": {}}


_ORDER = ("model", "task", "data", "method", "train", "sharding", "evaluate", "export", "track")


def finished(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe in the order in which people write one, without empty parts."""
    train = {key: recipe["train"][key] for key in Train.model_fields if key in recipe["train"]}
    return {key: value for key in _ORDER if (value := train if key == "train" else recipe.get(key)) not in (None, {})}


def default(reader: Reader, recipe: dict[str, Any], key: str, value: Any, tool: str) -> None:
    """Write out a default of the other tool, where the file says nothing and Tunery's own differs."""
    recipe["train"][key] = value
    reader.note(f"train.{key}: {value} is {tool}'s default, written out because Tunery's differs")


def hub_source(reader: Reader, name: str, config: str | None = None, split: str | None = None) -> str:
    """A hub data set as a recipe names it: org/name, org/name/config:split."""
    if "/" not in name:
        reader.note(f"data: `{name}` has no owner; a hub data set is named org/name in a recipe")
    return name + (f"/{config}" if config else "") + (f":{split}" if split and split != "train" else "")


def kto_pairs(reader: Reader, recipe: dict[str, Any]) -> None:
    """Say what KTO's rows are here: other tools' have one answer each, and whether it is good."""
    if recipe["task"].get("loss") == "kto":
        reader.note("data: kto learns from pairs here (`chosen` and `rejected`), not from single answers marked good or bad")


TRACKERS = ("tensorboard", "mlflow", "wandb")


def track(reader: Reader, recipe: dict[str, Any], named: list[Any]) -> bool:
    """Write the trackers (names, or mappings with a `name`) into the recipe; whether a recipe can name trackers."""
    if "track" not in Recipe.model_fields:
        return False
    recipe["track"] = [*recipe.get("track", []), *named]
    return True
