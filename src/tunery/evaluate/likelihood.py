"""How likely the model finds given text: sums over packs, never a kept logit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tunery.progress import Progress
from tunery.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunery.train.packs import TokenRow

CHUNK = 64
"""Sequences handed to packing at a time: enough for shared prefixes, few enough to show progress."""


def likelihoods(
    model: PreTrainedModel, task: Task, sequences: Sequence[TokenRow], progress: Progress, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) nats and (N,) weight: the loss of each sequence as a sum, and the sum of its weights."""
    import torch

    from tunery.train.forward import packs_for, row_losses

    nats, weights = np.zeros(len(sequences)), np.zeros(len(sequences))
    with torch.inference_mode():
        for start in range(0, len(sequences), CHUNK):
            part = sequences[start : start + CHUNK]
            for packed in packs_for(model, part):
                for row, total, count in row_losses(model, task, packed):  # the task's own loss, as in training
                    nats[start + row] += total
                    weights[start + row] += count
            progress.show(what, min(start + CHUNK, len(sequences)), len(sequences))
    return nats, weights
