"""An adapted layer by the processor's matrix unit: the frozen product and what is added to it in one call (`kernels/tile_low_rank.c`).

y    = g · (x Wᵀ + thin Mᵀ) + bias       thin = x Aᵀ,  M = sB,  for DoRA g = m / ‖W + sBA‖, whose norm has no gradient
dx   = (g·dy) W + dthin A                dthin = (g·dy) M
dA   = dthinᵀ x,   dB = s · (g·dy)ᵀ thin,   dg = Σ dy · (x Wᵀ + thin Mᵀ)

Sums are float32 until they are stored; A, B and their gradients are float32. Both directions are operations of torch's, so that whoever watches
operations sees them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunery.kernels import library
from tunery.methods._frozen import frozen_weight
from tunery.methods._fused_low_rank import gain_backward

SIDE = 32
"""Rows and columns of what the unit computes at a time."""


def able(x: torch.Tensor, base: nn.Linear) -> bool:
    """Whether the matrix unit takes this input and this layer."""
    if x.dtype != torch.bfloat16 or base.in_features % SIDE or base.out_features % SIDE or x.numel() < SIDE * base.in_features:
        return False
    weight = () if hasattr(base, "dense") else (base.weight.data,)
    return library.tiles() and library.usable(x, *weight) and all(w.is_contiguous() for w in weight)


def product(
    x: torch.Tensor, base: nn.Linear, a: torch.Tensor, b: torch.Tensor, scale: float, gain: torch.Tensor | None = None
) -> torch.Tensor:
    """x: (..., in), a: (rank, in), b: (out, rank), gain: (out,), all three float32 → (..., out), with gradients for all but the base."""
    y: torch.Tensor = _Product.apply(x, base, a, b, gain, scale)
    return y


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, base: nn.Linear, a: torch.Tensor, b: torch.Tensor, gain: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        bias = None if base.bias is None else base.bias.float()
        a, b = a.contiguous(), b.contiguous()
        y, thin, kept = torch.ops.tunery.low_rank(flat, frozen_weight(base, x.dtype), a, b, scale, gain, bias)
        ctx.save_for_backward(flat, a, b, thin, *((gain, kept) if gain is not None else ()))
        ctx.base, ctx.shape, ctx.scale = base, x.shape, scale
        result: torch.Tensor = y.view(*x.shape[:-1], y.shape[-1])
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, a, b, thin, *of_gain = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1]).contiguous()
        dgain = None
        if of_gain:
            gain, kept = of_gain
            dy, dgain = gain_backward(dy, kept, gain)
        weight = frozen_weight(ctx.base, dy.dtype) if ctx.needs_input_grad[0] else None
        dx, da, db = torch.ops.tunery.low_rank_backward(dy, flat, weight, a, b, thin, ctx.scale)
        return dx.view(ctx.shape) if weight is not None else None, None, da, db, dgain, None


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    gain: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, thin, and with a gain what it multiplies)"""
    rows, (out, width), rank = len(x), weight.shape, len(a)
    y, thin = x.new_empty(rows, out), x.new_empty(rows, rank)
    kept = x.new_empty(rows if gain is not None else 0, out)
    if x.device.type != "meta":
        given = (x, weight, a, b, float(scale), gain, bias, y, None if gain is None else kept, thin)
        library.done(library.call("tile_low_rank", x.dtype, *given, rows, width, out, rank))
    return y, thin, kept


def _backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor, thin: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, of no rows without a weight; da, db)"""
    dx, da, db = x.new_empty(len(x) if weight is not None else 0, x.shape[1]), torch.empty_like(a), torch.empty_like(b)
    if x.device.type != "meta":
        given = (dy, x, weight, a, b, float(scale), thin, None if weight is None else dx, da, db)
        library.done(library.call("tile_low_rank_backward", x.dtype, *given, *x.shape, dy.shape[1], len(a)))
    return dx, da, db


library.define("low_rank(Tensor x, Tensor weight, Tensor a, Tensor b, float scale, Tensor? gain, Tensor? bias) -> (Tensor, Tensor, Tensor)", _forward)
library.define(
    "low_rank_backward(Tensor dy, Tensor x, Tensor? weight, Tensor a, Tensor b, Tensor thin, float scale) -> (Tensor, Tensor, Tensor)", _backward
)
