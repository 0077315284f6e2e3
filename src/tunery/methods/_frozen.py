"""The frozen weight of a linear layer, dense or in four bits: what an adapter's layer computes with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def frozen_weight(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """(out, in): the layer's weight. A quantised one is written out in `dtype`, anew each time; an ordinary one is given as it is."""
    dense = getattr(layer, "dense", None)
    weight: torch.Tensor = dense(dtype) if dense else layer.weight
    return weight


class FrozenProduct(torch.autograd.Function):
    """x Wᵀ without a gradient for W, and without keeping W: it is written out once more for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        """x: (..., in) → (..., out)."""
        ctx.layer = layer
        return F.linear(x, frozen_weight(layer, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        dy = grads[0]
        return (dy @ frozen_weight(ctx.layer, dy.dtype) if ctx.needs_input_grad[0] else None), None
