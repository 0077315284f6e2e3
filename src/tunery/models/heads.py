"""The layer that a task puts on a model in place of the output vocabulary: one score a class, for a text or for each token.

transformers has the classes: `...ForSequenceClassification` (an encoder pools its first token through its pooling layer, a decoder takes
the last token that is no padding) and `...ForTokenClassification`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunery.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEADS = ("score", "classifier", "classification_head", "pre_classifier", "qa_outputs")
"""What transformers' classes call the layers that a base model lacks."""

_BETWEEN = ("pooler", "head")
"""Layers between a base model and its head that many folders lack: BERT's pooling layer, ModernBERT's `head`."""

CLASSES = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}
"""How the names of transformers' classes end."""


@dataclass(frozen=True)
class Head:
    """`sequence`: one class a text; `token`: one class a token. `labels` are the classes' names in the order of their numbers."""

    kind: Literal["sequence", "token"]
    labels: tuple[str, ...]

    def config(self) -> dict[str, Any]:
        """The keys of a transformers configuration that say this."""
        numbers = {label: n for n, label in enumerate(self.labels)}
        return {"id2label": {n: label for label, n in numbers.items()}, "label2id": numbers, "num_labels": len(numbers)}


def head_modules(model: PreTrainedModel | Any) -> list[str]:
    """The names of the submodules that are a task's head: all that began untrained. None for a causal language model.

    A pooling layer that the folder lacked began with random values as well, so it belongs to the head and is trained and saved with it.
    """
    named = [name for name, _ in model.named_children() if name in _HEADS]
    return list(dict.fromkeys([*named, *getattr(model, "new_layers", ())]))


def new_layers(missing: Iterable[str]) -> tuple[tuple[str, ...], list[str]]:
    """(layers of a head, or before one, that a folder lacks; keys that may not be missing), from the keys that it lacks."""
    layers, others = [], []
    for key in sorted(missing):
        parts = key.split(".")
        at = next((n for n, part in enumerate(parts) if part in (*_HEADS, *_BETWEEN)), None)
        if at is None:
            others.append(key)
        else:
            layers.append(".".join(parts[: at + 1]))
    return tuple(dict.fromkeys(layers)), others


def head_of(folder: Path) -> Head | None:
    """The head that the model in `folder` came with, or None: from config.json alone."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = config.get("architectures") or [""]
    kind: Any = next((kind for kind, ending in CLASSES.items() if names[0].endswith(ending)), None)
    labels = config.get("id2label")
    if kind is None or not isinstance(labels, dict):
        return None
    return Head(kind, tuple(str(labels[key]) for key in sorted(labels, key=int)))


def check_own_head(folder: Path, head: Head) -> None:
    """Raise InputError when the model in `folder` came with a head of this kind whose classes are others, or in another order."""
    own = head_of(folder)
    if own is not None and own.kind == head.kind and own.labels != head.labels:
        raise InputError(
            f"{folder}: this model came with a head for the labels {', '.join(own.labels)}, and the task has {', '.join(head.labels)}; "
            "write them in task.labels as the model has them, or name a model without a head"
        )
