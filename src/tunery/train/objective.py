"""What is made small: a batch's loss, as one module with the model inside.

One module, because whatever divides weights over processes must know where a forward pass begins and ends, and the output head is
called after the model's own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from tunery.train.learners import Learner

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Objective(torch.nn.Module):
    """batch → (the sum of its losses, the sum of its weights), both scalars."""

    def __init__(self, model: PreTrainedModel, learner: Learner, autocast: bool = False) -> None:
        super().__init__()
        self.model, self.learner, self.autocast = model, learner, autocast

    def forward(self, batch: Any, instead: Callable[[PreTrainedModel], Any] | None = None) -> Any:
        """With `autocast`, what is safe in bfloat16 is computed in it. instead: what to do with the model in place of the loss."""
        with torch.autocast(self.model.device.type, torch.bfloat16) if self.autocast else nullcontext():
            return instead(self.model) if instead else self.learner.loss(self.model, batch)
