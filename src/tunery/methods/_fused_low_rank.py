"""DoRA's product, what surrounds the frozen product in one pass each, and its sum in float32 (Liu et al. 2024, section 4.3).

y    = g · (x Wᵀ + thin M) + bias        thin = x Aᵀ,  M = (sB)ᵀ,  g = m / ‖W + sBA‖, whose norm has no gradient
dx   = (g·dy) W + dthin A                dthin = (g·dy) Mᵀ
dA   = dthinᵀ x,   dM = thinᵀ (g·dy),    dg = Σ dy · (x Wᵀ + thin M)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tunery.kernels.library import call, usable
from tunery.methods._frozen import frozen_weight


def able(x: torch.Tensor, base: nn.Module) -> bool:
    """Whether the kernels take this input and this layer."""
    weight = getattr(base, "weight", None)
    plain = hasattr(base, "dense") or (isinstance(weight, torch.Tensor) and usable(x, weight.data))
    return plain and usable(x)


def product(x: torch.Tensor, base: nn.Module, a: torch.Tensor, m: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """x: (..., in), a: (rank, in) float32, m: (rank, out) float32, gain: (out,) float32 → (..., out), with gradients for all but the base."""
    y: torch.Tensor = _Product.apply(x, base, a, m, gain)
    return y


def thin_product(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """x mᵀ in float32: x (rows, width), m (rank, width) float32 → (rows, rank)."""
    if x.device.type == "meta":
        return (x @ m.T.to(x.dtype)).float()
    thin = torch.empty(len(x), len(m))
    call("thin_product", x.dtype, x, m, thin, len(x), x.shape[1], len(m))
    return thin


def norm(square: torch.Tensor, wa: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """(out,): the lengths of the rows of W + scale · BA. square: (out,) ‖W‖², wa: (out, rank) W Aᵀ, a: (rank, in), b: (out, rank), all float32."""
    gram = a @ a.T
    if square.device.type == "meta":
        return square.sqrt()
    found = torch.empty_like(square)
    call("dora_norm", torch.float32, square, wa, gram, b.contiguous(), float(scale), found, len(square), len(a))
    return found


def _add(p: torch.Tensor, thin: torch.Tensor, m: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """p becomes gain · (p + thin m) + bias; what is returned is p + thin m."""
    if p.device.type == "meta":
        p.addmm_(thin.to(p.dtype), m.to(p.dtype))
        return p.clone()
    kept = torch.empty_like(p)
    call("add_low_rank", p.dtype, p, thin, m, gain, bias, kept, len(p), p.shape[1], thin.shape[1])
    return kept


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, base: Any, a: torch.Tensor, m: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        thin = flat @ a.to(x.dtype).T
        y = F.linear(flat, frozen_weight(base, x.dtype))
        bias = None if base.bias is None else base.bias.float()
        kept = _add(y, thin.float(), m.contiguous(), gain, bias)
        ctx.save_for_backward(flat, a, m, thin, kept, gain)
        ctx.base, ctx.shape = base, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, a, m, thin, kept, gain = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1]).contiguous()
        dsum, dgain = _gain_backward(dy, kept, gain)
        dthin = dsum @ m.to(dy.dtype).T
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dsum @ frozen_weight(ctx.base, dy.dtype)).addmm_(dthin, a.to(dy.dtype)).view(ctx.shape)
        return dx, None, (dthin.T @ flat).to(a.dtype), (thin.T @ dsum).to(m.dtype), dgain


def _gain_backward(dy: torch.Tensor, kept: torch.Tensor, gain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(gain · dy, Σ dy · kept over the rows)."""
    if dy.device.type == "meta":
        return dy * kept, torch.empty_like(gain)
    dsum, sums = torch.empty_like(dy), torch.zeros(torch.get_num_threads(), len(gain))
    call("gain_backward", dy.dtype, dy, kept, gain, dsum, sums, *dy.shape)
    return dsum, sums.sum(0)
