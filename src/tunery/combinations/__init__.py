"""What goes with what: task × method × sharding × precision × device × export × model, derived from what each part declares.

A *cell* is one value on each of the seven axes. No list of allowed cells is written down anywhere: a part's file says in `REFUSES` what it
does not go together with, and its other declarations (`FORM`, `SAVES`, `MERGES`) are read for the rest. `walked.py` knows which cells have
been run for real, `table.py` draws both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from tunery import export, methods, sharding, tasks
from tunery.errors import InputError
from tunery.recipe import Recipe
from tunery.refusal import AXES, Refusal

ONE_MODEL = ("merged", "onnx", "gguf")
"""Exports that are one model in one piece, with what was learned inside the base's own weights."""

REPLACED = {"adapter": "merged"}
"""For a method that trains the base itself there is no adapter: the export that is made in its place."""

# What a user gives up last comes last: an export or a number format is changed before the method, and the task is the work itself.
_CHANGED_FIRST = ("export", "precision", "sharding", "method", "task")

Choice = Mapping[str, str]


@dataclass(frozen=True)
class Rule:
    """A refusal together with the part that declares it: no cell works where every axis of `when` has one of the values named for it."""

    axis: str
    part: str
    when: Mapping[str, tuple[str, ...]]
    refusal: Refusal

    def meets(self, choice: Choice) -> bool:
        """Whether this combination is meant. An axis that `choice` leaves open is not met."""
        return all(choice.get(axis) in values for axis, values in self.when.items())


@cache
def values() -> Mapping[str, tuple[str, ...]]:
    """What each axis can be, in the order in which it is shown."""
    return {
        "task": tuple(tasks.names()),
        "method": tuple(methods.names()),
        "sharding": tuple(sorted(sharding.names(), key=lambda name: (name != "none", name))),
        "precision": ("bf16", "fp32"),
        "device": ("cpu", "cuda"),
        "export": tuple(export.names()),
        "model": ("decoder", "encoder"),
    }


def part(axis: str, name: str) -> Any:
    """The file that offers a task, a method, a sharding or an export."""
    rooms: Mapping[str, Any] = {"task": tasks, "method": methods, "sharding": sharding, "export": export}
    return rooms[axis].get(name)


@cache
def rules() -> tuple[Rule, ...]:
    """Every refusal: those that the parts write down first, since they know their reason best, then those that follow from what they are."""
    written = [
        Rule(axis, name, {**refusal.when, axis: (name,)}, refusal)
        for axis in ("task", "method", "sharding", "export")
        for name in values()[axis]
        for refusal in getattr(part(axis, name), "REFUSES", ())
    ]
    return (*written, *_derived())


def _derived() -> Iterator[Rule]:
    for name in values()["task"]:
        form = part("task", name).FORM
        if form in ("tokens", "pairs"):
            reason = "an encoder reads a text from both sides and predicts no next token, so there is nothing to continue"
            source = "Devlin et al. 2018, BERT (arXiv:1810.04805), section 3.1"
            yield _rule("task", name, Refusal({"model": ("encoder",)}, reason, source, "task: classify"))
    for name in values()["method"]:
        method = part("method", name)
        if not method.MERGES:
            known = tuple(e for e in ONE_MODEL if e in values()["export"])
            reason = "what it learns cannot be put into the base's own weights, and this export holds nothing else"
            yield _rule("method", name, Refusal({"export": known}, reason, f"`MERGES` in methods/{name}.py", "export: adapter"))
        if method.SAVES == "weights":
            reason = "it trains the base's own weights, so there is no adapter"
            source = f"`SAVES` in methods/{name}.py"
            for export_name, other in REPLACED.items():
                yield _rule("method", name, Refusal({"export": (export_name,)}, reason, source, f"export: {other}"))


def _rule(axis: str, name: str, refusal: Refusal) -> Rule:
    return Rule(axis, name, {**refusal.when, axis: (name,)}, refusal)


def refusal_of(choice: Choice) -> Rule | None:
    """The first rule against this combination, with the part that declares it; None when nothing is known against it.

    `choice` holds a value for each axis that is decided; a rule about an axis that is left open does not count yet.
    """
    return next((rule for rule in rules() if rule.meets(choice)), None)


def cells(**fixed: str) -> Iterator[dict[str, str]]:
    """Every cell, refused or not, with the given axes held."""
    known = values()
    for combination in itertools.product(*((fixed[axis],) if axis in fixed else known[axis] for axis in AXES)):
        yield dict(zip(AXES, combination, strict=True))


def changed_by(instead: str) -> dict[str, str]:
    """The axes that a line of a recipe sets, with their values: `sharding: {stage: zero2, offload: cpu}` → `{"sharding": "zero2"}`."""
    plain = yaml.safe_load(instead)
    if not isinstance(plain, dict):
        raise ValueError(f"`{instead}` is not a line of a recipe")
    recipe = Recipe.model_validate({"model": "", "data": {"train": ""}, **plain})
    found = {axis: getattr(recipe, axis).name for axis in ("task", "method", "sharding") if axis in plain}
    if "export" in plain and recipe.export:
        found["export"] = recipe.export[0].name
    if recipe.train.precision != "auto":
        found["precision"] = recipe.train.precision
    return found


def nearest(choice: Choice, rule: Rule) -> str | None:
    """What to write instead, in lines of a recipe, so that it works: the rule's own answer, or else the allowed cell with the fewest changes.

    None when a recipe cannot mend it: the model itself does not fit.
    """
    if refusal_of({**choice, **changed_by(rule.refusal.instead)}) is None:
        return rule.refusal.instead
    axes = [axis for axis in _CHANGED_FIRST if axis in choice]
    for count in range(1, len(axes) + 1):
        for changed in itertools.combinations(axes, count):
            for new in itertools.product(*(values()[axis] for axis in changed)):
                other = dict(zip(changed, new, strict=True))
                if refusal_of({**choice, **other}) is None:
                    return "` and `".join(_line(axis, value) for axis, value in other.items())
    return None


def _line(axis: str, value: str) -> str:
    return f"train: {{precision: {value}}}" if axis == "precision" else f"{axis}: {value}"


def require(choice: Choice, source: str = "recipe", called: Mapping[str, str] | None = None) -> None:
    """Raise InputError when this combination is refused: what does not go with what, the reason, its source, and what works instead.

    `called` has for some axes the words in which a recipe chose their value.
    """
    rule = refusal_of(choice)
    if rule is None:
        return
    said = {axis: _said(axis, value) for axis, value in choice.items()} | dict(called or {})
    others = [said[axis] for axis in AXES if axis in rule.when and axis != rule.axis]
    instead = nearest(choice, rule)
    mend = f"use `{instead}`" if instead else "choose another model"
    raise InputError(
        f"{source}: {said[rule.axis]} does not go together with {' and '.join(others)}: {rule.refusal.reason} "
        f"({rule.refusal.source}); {mend}"
    )


def _said(axis: str, value: str) -> str:
    if axis == "model":
        return "an encoder" if value == "encoder" else "a decoder"
    if axis == "device":
        return {"cpu": "the CPU", "cuda": "a GPU"}[value]
    return f"`{axis}: {value}`"
