"""The recipe as written: what a user asks for, before anything is looked up.

A recipe is a YAML file or a Python mapping. Here its keys are known and its values have the right form; whether the
model exists, and whether a method fits a task, is decided in `resolve.py`. Every refusal is one sentence that names the
file, the line, the key and the mend; an unknown key names the nearest one that exists.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tunery.errors import InputError

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Options(BaseModel):
    """Base of every group of settings: unknown keys are refused, and a setting never changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class WeightedSource(Options):
    """One of several training files. `weight` is how many times an epoch shows its rows (0.5: every second row)."""

    path: str
    weight: Annotated[float, Field(gt=0)] = 1.0


class Data(Options):
    """Where the rows come from. Paths are relative to the recipe's folder."""

    train: str | tuple[WeightedSource, ...]
    valid: Fraction | str | None = None
    test: Fraction | str | None = None
    max_truncated: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The share of rows that may be cut at `train.max_length`; 0 turns cutting off, 1 allows it for all."""

    @field_validator("train", mode="before")
    @classmethod
    def _sources(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            if not value:
                raise ValueError("the list is empty: name at least one file")
            return tuple({"path": v} if isinstance(v, str) else v for v in value)
        return value


class Named(Options):
    """A choice found by name with options of its own, which the room that holds the choice validates."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Train(Options):
    """The training loop's settings. `None` means: decided when the recipe is resolved, with a reason."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Annotated[int, Field(gt=0)] | None = None
    tokens_per_step: Annotated[int, Field(gt=0)] | None = None
    rows_per_step: Annotated[int, Field(gt=0)] | None = None
    max_length: Annotated[int, Field(gt=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    optimizer: Literal["adamw"] = "adamw"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    validate_every: Annotated[int, Field(gt=0)] | None = None
    early_stopping: Annotated[int, Field(gt=0)] | None = None
    """Stop after this many validations without a lower `valid_loss`, and keep the best weights."""
    checkpoint_every: Annotated[int, Field(gt=0)] = 200
    init_from: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _one_step_size(self) -> Train:
        if self.tokens_per_step is not None and self.rows_per_step is not None:
            raise ValueError("tokens_per_step and rows_per_step both set the size of a step: keep one of them")
        return self


class Evaluate(Options):
    """What is measured before and after, on the test rows."""

    metrics: tuple[str, ...] | None = None
    """The names to report; the first is the one that a quantised export must keep. None: chosen from the data."""
    limit: Annotated[int, Field(gt=0)] | None = None
    max_new_tokens: Annotated[int, Field(gt=0)] | None = None
    forgetting_tokens: Annotated[int, Field(ge=0)] = 50_000
    """Tokens of general text on which forgetting is measured, over all domains; 0 turns the probe off."""


class Recipe(Options):
    """One fine-tuning job: model, task, data, method, training, sharding, evaluation, exports."""

    model: str
    data: Data
    task: Named = Named(name="chat")
    method: Named = Named(name="lora")
    train: Train = Train()
    sharding: Named = Named(name="none")
    evaluate: Evaluate = Evaluate()
    export: tuple[Named, ...] = (Named(name="adapter"),)
    hub: Named | None = None
    """Written under `export`, as `{hub: org/name}`: it says where to, not in which form, so it is kept apart from the forms."""
    track: tuple[Named, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _hub(cls, plain: Any) -> Any:
        if not isinstance(plain, Mapping) or plain.get("export") is None:
            return plain
        value = plain["export"]
        items = [value] if isinstance(value, str) else [{k: v} for k, v in value.items()] if isinstance(value, Mapping) else value
        if not isinstance(items, list | tuple):
            return plain
        forms: list[Any] = []
        places: list[Any] = []
        for item in items:
            own = item == "hub" or (isinstance(item, Mapping) and ("hub" in item or item.get("name") == "hub"))
            (places if own else forms).append(item)
        if len(places) > 1:
            raise ValueError("export names `hub` twice: keep one, and push to others with `tunery export RUN --to hub:org/name`")
        if not places:
            return plain
        where = places[0]["hub"] if isinstance(places[0], Mapping) and "hub" in places[0] else places[0]
        if isinstance(where, Mapping):
            options = {k: v for k, v in where.items() if k != "name"}
        else:
            options = {} if places[0] == "hub" else {"repo": where}
        rest = {k: v for k, v in plain.items() if k != "export"}
        return {**rest, "hub": {"name": "hub", "options": options}, **({"export": forms} if forms else {})}

    @field_validator("track", mode="before")
    @classmethod
    def _track(cls, value: Any) -> Any:
        if value is None:
            return ()
        if isinstance(value, str | Mapping):
            value = [value]
        if not isinstance(value, list | tuple):
            return value
        return tuple(_named(_under_its_name(item)) for item in value)

    @field_validator("task", "method", "sharding", mode="before")
    @classmethod
    def _choice(cls, value: Any, info: Any) -> Any:
        return _named(value, key="stage" if info.field_name == "sharding" else "name")

    @field_validator("export", mode="before")
    @classmethod
    def _exports(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, Mapping):
            value = [{k: v} for k, v in value.items()]
        if not isinstance(value, list | tuple):
            return value
        exports: list[Any] = []
        for item in value:
            if isinstance(item, Mapping) and "name" not in item and len(item) == 1:
                ((name, precision),) = item.items()
                item = {"name": name, "options": {"precision": precision}}
            exports.append(_named(item))
        return tuple(exports)

    def as_written(self) -> dict[str, Any]:
        """The mapping that `read` accepts and that gives this recipe again."""
        plain = self.model_dump(mode="json")
        plain["task"] = {"name": self.task.name, **self.task.options} if self.task.options else self.task.name
        plain["method"] = {"name": self.method.name, **self.method.options}
        plain["sharding"] = {"stage": self.sharding.name, **self.sharding.options} if self.sharding.options else self.sharding.name
        plain["export"] = [{e.name: e.options["precision"]} if e.options else e.name for e in self.export]
        plain.pop("hub")
        if self.hub is not None:
            plain["export"].append({"hub": dict(self.hub.options)})
        plain["track"] = [{"name": t.name, **t.options} if t.options else t.name for t in self.track]
        return plain


def _under_its_name(item: Any) -> Any:
    """`{mlflow: {uri: …}}` as `{name: mlflow, uri: …}`, which says the same."""
    if isinstance(item, Mapping) and "name" not in item and len(item) == 1:
        ((name, options),) = item.items()
        return {"name": name, **(options or {})} if options is None or isinstance(options, Mapping) else item
    return item


def _named(value: Any, key: str = "name") -> Any:
    if value is None:
        return {"name": "none"}
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and "options" not in value and key in value:
        rest = {k: v for k, v in value.items() if k != key}
        return {"name": value[key], "options": rest}
    return value


def read(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `key.sub=value` overrides laid over it.

    Raises InputError naming file, line and key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such recipe file; name a YAML file, or write one as the README shows") from None
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({e.__class__.__name__}); save it as a UTF-8 YAML file") from None
    try:
        plain = yaml.safe_load(text)
        lines = _key_lines(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: this is not valid YAML ({getattr(e, 'problem', None) or 'unreadable'}); mend the line") from None
    return from_mapping(plain, overrides=overrides, source=str(path), lines=lines)


def from_mapping(
    plain: Any, overrides: Iterable[str] = (), source: str = "recipe", lines: Mapping[tuple[str, ...], int] | None = None
) -> Recipe:
    """The recipe in a mapping of plain values. `source` and `lines` (key path → line) only serve the messages."""
    if not isinstance(plain, Mapping):
        raise InputError(f"{source}: a recipe is a mapping with the keys model and data, this is {_form(plain)}")
    plain = _with_overrides(dict(plain), overrides)
    try:
        return Recipe.model_validate(plain)
    except ValidationError as e:
        raise InputError(describe(e, Recipe, source, lines or {})) from None


def describe(
    error: ValidationError, model: type[BaseModel], source: str, lines: Mapping[tuple[str, ...], int], under: tuple[str, ...] = ()
) -> str:
    """The first problem of a validation as one sentence: `FILE:LINE: key: what is wrong; the mend`."""
    problems = error.errors(include_url=False)
    # An unknown key explains more than the missing key that it was meant to be.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    written = [str(p) for p in first["loc"]]
    unknown = first["type"] == "extra_forbidden"  # then the last part is the user's own word, whatever it looks like
    path = (*under, *(p for n, p in enumerate(written) if not _is_type_tag(p) or (unknown and n == len(written) - 1)))
    key = ".".join(path)
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    where = f"{source}:{line}" if line else source
    if unknown:
        known = _keys_at(model, path[len(under) : -1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        mend = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(known))}"
        return f"{where}: unknown key `{key}`; {mend}"
    if first["type"] == "missing":
        return f"{where}: the key `{key}` is missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return (
        f"{where}: `{key}`: {message}, not {first['input']!r}"
        if first["type"] != "value_error"
        else f"{where}: {key + ': ' if key else ''}{message}"
    )


def options_of(
    chosen: Named, model: type[Options], key: str, source: str = "recipe", lines: Mapping[tuple[str, ...], int] | None = None
) -> Any:
    """The options of a choice, validated by what it declares. Raises InputError naming the key, and the nearest for an unknown one."""
    try:
        return model.model_validate(chosen.options)
    except ValidationError as e:
        raise InputError(describe(e, model, source, lines or {}, under=(key,))) from None


def _is_type_tag(part: str) -> bool:
    """pydantic names the branch of a union in an error's path (`constrained-str`, `float`); a user never wrote that."""
    return part in {"str", "float", "int", "bool", "none"} or "[" in part or "-" in part


def _keys_at(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        if part.isdigit():
            continue
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            candidates = [a for a in _flatten(inner) if isinstance(a, type) and issubclass(a, BaseModel)]
            if not candidates:
                return []
            inner = candidates[0]
        model = inner
    return list(model.model_fields)


def _flatten(annotation: Any) -> list[Any]:
    args = getattr(annotation, "__args__", ())
    return [annotation, *(x for a in args for x in _flatten(a))]


def _key_lines(node: yaml.Node | None, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    if len(path) > 8:  # deeper than any recipe: an anchor that holds itself has no end
        return found
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            found[here] = key.start_mark.line + 1
            found.update(_key_lines(value, here))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*path, str(index))
            found[here] = value.start_mark.line + 1
            found.update(_key_lines(value, here))
    return found


def _with_overrides(plain: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {override}: write it as key=value, for example train.epochs=1")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {override}: the value is not valid YAML; quote it") from None
        *parents, last = key.strip().split(".")
        inner = plain
        for parent in parents:
            below = inner.get(parent)
            if isinstance(below, str) and parent in ("task", "method", "sharding"):
                below = {"stage" if parent == "sharding" else "name": below}
            if below is None:
                below = {"task": {"name": "chat"}, "method": {"name": "lora"}, "sharding": {"stage": "none"}}.get(parent, {})
            if not isinstance(below, Mapping):
                raise InputError(f"--set {override}: `{parent}` holds {_form(below)}, so it has no key `{last}`")
            inner[parent] = below = dict(below)
            inner = below
        inner[last] = value
    return plain


def _form(value: Any) -> str:
    return {type(None): "empty", list: "a list", str: "text", bool: "true or false"}.get(type(value), f"a {type(value).__name__}")
