"""What every task that learns to continue text shares: its rows become tokens, its loss is the cross-entropy of the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from tunery.data.render import Renderer


class Options(_Options):
    """There is nothing to choose."""


def renderer(tokenizer: PreTrainedTokenizerFast, options: Any) -> Renderer:
    """By the tokenizer and its chat template."""
    from tunery.data.render import Renderer

    return Renderer(tokenizer)


def loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logits: (S, vocabulary) at the supervised positions, targets and weights: (S,) → (sum in nats, sum of the weights).

    In float32 whatever the logits are: a bfloat16 logarithm has two digits.
    """
    from torch.nn.functional import cross_entropy

    nats = cross_entropy(logits.float(), targets, reduction="none")
    return (nats * weights).sum(), weights.sum()
