"""The LoRA layer itself: what stands in for a linear layer while an adapter is trained or used."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class LoraLinear(nn.Module):
    """A frozen linear layer with a learned low-rank addition.

    The matrices are float32 whatever the base is, since a step of 1e-4 on a weight of 0.1 is lost in bfloat16. They are cast to the
    input's type for the thin products.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        assert isinstance(base, nn.Linear)
        self.base = base
        self.scale = scale
        self.dropout = dropout
        device = base.weight.device
        a = torch.empty(rank, base.in_features)
        bound = 1 / math.sqrt(base.in_features)  # He et al. with slope √5, what PEFT and nn.Linear start from
        a.uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    @property
    def weight(self) -> torch.Tensor:
        """The frozen weight, for code that asks a layer for its type or device."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) → (..., out)."""
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype) * self.scale
        if self.dropout and self.training:  # acts on the adapter's input alone
            return self.base(x) + F.linear(F.linear(F.dropout(x, self.dropout), a), b)
        return _LowRank.apply(x, self.base.weight, self.base.bias, a, b)


class _LowRank(torch.autograd.Function):
    """y = x Wᵀ + (x Aᵀ) Bᵀ with the thin products added in place, and no gradient computed for the frozen W.

    Written out because autograd would make a full-size tensor for each sum and each scale: on a CPU that costs as much as the product.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """x: (..., in), w: (out, in), bias: (out,) or None, a: (rank, in), b: (out, rank) with the scale in it."""
        flat = x.reshape(-1, x.shape[-1])
        thin = flat @ a.T
        y = F.linear(flat, w, bias).addmm_(thin, b.T)
        ctx.save_for_backward(flat, w, a, b, thin)
        ctx.shape = x.shape
        return y.view(*x.shape[:-1], w.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, w, a, b, thin = ctx.saved_tensors
        dy = grads[0].reshape(-1, w.shape[0])
        dthin = dy @ b
        dx = (dy @ w).addmm_(dthin, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return dx, None, None, dthin.T @ flat, dy.T @ thin
