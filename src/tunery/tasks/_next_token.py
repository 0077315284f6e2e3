"""The loss of every task that learns to continue text: cross-entropy of the next token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logits: (S, vocabulary) at the supervised positions, targets and weights: (S,) → (sum in nats, sum of the weights).

    In float32 whatever the logits are: a bfloat16 logarithm has two digits.
    """
    from torch.nn.functional import cross_entropy

    nats = cross_entropy(logits.float(), targets, reduction="none")
    return (nats * weights).sum(), weights.sum()
