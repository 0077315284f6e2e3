"""The layer that a task puts on a model in place of the output vocabulary: one score a class, for a text or for each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAMES = ("score", "classifier", "classification_head", "pre_classifier", "qa_outputs")
"""What transformers' `...ForSequenceClassification` and `...ForTokenClassification` call the layers that a base model lacks."""


@dataclass(frozen=True)
class Head:
    """`sequence`: one class a text; `token`: one class a token. `labels` are the classes' names in the order of their numbers."""

    kind: Literal["sequence", "token"]
    labels: tuple[str, ...]


def head_modules(model: PreTrainedModel | Any) -> list[str]:
    """The names of the submodules that are a task's head, and so begin untrained; none for a causal language model."""
    names = {name.rpartition(".")[2]: name for name, _ in model.named_children()}
    return [full for leaf, full in names.items() if leaf in _NAMES]
