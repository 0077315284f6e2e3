"""Learning with a head: one class a text or a token, in padded batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from tunery.tasks import Task
from tunery.train.padded import TOKENS, Batch, batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunery.data.render import Sequence


def batches_for(model: PreTrainedModel, rows: Iterable[Sequence]) -> Iterator[Batch]:
    """`batches` as this model needs them: padded with its own token, and one row each for a method that cannot have them together."""
    return batches(rows, int(model.config.pad_token_id), 1 if getattr(model, "rows_apart", False) else TOKENS)


def logits_of(model: PreTrainedModel, task: Task, batch: Batch) -> torch.Tensor:
    """(S, classes): the scores at the batch's places, in their order."""
    device = model.device
    out: Any = model(input_ids=torch.from_numpy(batch.ids).to(device), attention_mask=torch.from_numpy(batch.mask).to(device))
    row, position = torch.from_numpy(batch.places).to(device).unbind(1)
    logits: torch.Tensor = out.logits[row] if task.FORM == "sequence" else out.logits[row, position]
    return logits


class Learner:
    """See `learners.Learner`; a batch is a `Batch`."""

    def __init__(self, task: Task, options: Any, share_prefixes: bool) -> None:
        self.task = task

    def batches(self, model: PreTrainedModel, rows: Iterable[Any]) -> Iterator[Batch]:
        return batches_for(model, rows)

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        classes, weights = (torch.from_numpy(x).to(model.device) for x in (batch.classes, batch.weights))
        return self.task.loss(logits_of(model, self.task, batch), classes, weights)
