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

    from tunery.train.forward import logits_of, packs_for

    nats, weights = np.zeros(len(sequences)), np.zeros(len(sequences))
    with torch.inference_mode():
        for start in range(0, len(sequences), CHUNK):
            part = sequences[start : start + CHUNK]
            for packed in packs_for(model, part):
                if not len(packed.targets):
                    continue
                targets = torch.from_numpy(packed.targets).to(model.device)
                weight = torch.from_numpy(packed.weights).to(model.device)
                logits = logits_of(model, packed)
                # The task's own loss, row by row: evaluation and training cannot drift apart.
                for row in np.unique(packed.rows):
                    own = torch.from_numpy(np.flatnonzero(packed.rows == row)).to(model.device)
                    total, count = task.loss(logits[own], targets[own], weight[own])
                    nats[start + row] += total.item()
                    weights[start + row] += count.item()
            progress.show(what, min(start + CHUNK, len(sequences)), len(sequences))
    return nats, weights
