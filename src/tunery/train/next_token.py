"""Learning to continue text: rows in packs, logits where something is learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from tunery.tasks import Task
from tunery.train.forward import pack_loss, packs_for
from tunery.train.packs import Pack, TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Learner:
    """See `learners.Learner`; a batch is a `Pack`."""

    def __init__(self, task: Task, options: Any, share_prefixes: bool) -> None:
        self.task, self.share = task, share_prefixes

    def batches(self, model: PreTrainedModel, rows: Iterable[TokenRow]) -> Iterator[Pack]:
        return packs_for(model, rows, share=self.share)

    def loss(self, model: PreTrainedModel, batch: Pack) -> tuple[torch.Tensor, torch.Tensor]:
        return pack_loss(model, self.task, batch)
