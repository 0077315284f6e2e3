"""How a step's rows become a loss: one learner for each form of task, found by the form's name.

    next_token    rows in packs, every supervised token counts (chat, text)
    with_head     rows in padded batches, one class a text or a token (classify, tag)
    preference_pairs   both sides of each pair through the model (preference)

A learner cuts the rows into batches and gives each batch's summed loss; the loop divides by the weight of the whole optimiser step, so it
does not matter into how many batches, or processes, a step is cut.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from tunery.tasks import Task
from tunery.train.packs import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FILES = {"tokens": "next_token", "sequence": "with_head", "token": "with_head", "pairs": "preference_pairs"}


class Learner(Protocol):
    """What every learner's file offers, as a class `Learner(task, options, share_prefixes)`."""

    def batches(self, model: PreTrainedModel, rows: Iterable[TokenRow]) -> Iterator[Any]:
        """The rows in the form in which `loss` takes them, in an order that depends on the rows alone."""

    def loss(self, model: PreTrainedModel, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the batch's losses, with gradients, and the sum of its weights, as `Rows.supervised` counts them."""


def get(task: Task, options: Any = None, share_prefixes: bool = True) -> Learner:
    """The learner of a task. options: the task's own. share_prefixes: rows of a pack that begin alike are computed once up to there."""
    module = importlib.import_module(f"tunery.train.{_FILES[task.FORM]}")
    return cast(Learner, module.Learner(task, options, share_prefixes))


def positions(batch: Any) -> int:
    """How many tokens of a learner's batch are computed: what rows share counts once, padding counts."""
    if hasattr(batch, "packs"):
        return sum(len(p.tokens) for p in batch.packs)
    return int(batch.ids.size) if hasattr(batch, "ids") else len(batch.tokens)
