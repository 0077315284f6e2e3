"""An adapted layer in tiles of bfloat16: the frozen product and what is added to it in one call (`kernels/tile_low_rank.c`).

y    = g · (x Wᵀ + thin Mᵀ) + bias       thin = x Aᵀ,  M = sB,  for DoRA g = m / ‖W + sBA‖, whose norm has no gradient
dx   = (g·dy) W + dthin A                dthin = (g·dy) M
dA   = dthinᵀ x,   dB = s · (g·dy)ᵀ thin,   dm = Σ dy · (x Wᵀ + thin Mᵀ) / ‖W + sBA‖

Sums are float32 until they are stored; A, B and their gradients are float32. The norm and the gain are taken, and a weight in four bits is
written out, while the weight is laid out in tiles, so neither is a pass of its own. Both directions are operations of torch's, so that
whoever watches operations sees them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunery.kernels import library, nf4, tile_linear
from tunery.methods._frozen import frozen_weight


def able(x: torch.Tensor, base: nn.Linear) -> bool:
    """Whether the kernel takes this input and this layer."""
    weight = None if hasattr(base, "dense") else base.weight.data
    return tile_linear.able(x, base.in_features, base.out_features, weight)


def product(
    x: torch.Tensor,
    base: nn.Linear,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    magnitude: torch.Tensor | None = None,
    square: torch.Tensor | None = None,
) -> torch.Tensor:
    """x: (..., in), a: (rank, in), b: (out, rank) → (..., out), with gradients for all but the base.

    For DoRA magnitude: (out,), square: (out,) ‖W‖² of each row. All but x are float32.
    """
    y: torch.Tensor = _Product.apply(x, base, a, b, magnitude, square, scale)
    return y


def _frozen(base: Any, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The layer's weight, and where that is in four bits, what they stand for."""
    coded = nf4.parts(base.weight.data, base.weight.quant_state) if hasattr(base, "dense") else None
    return (base.weight.data, coded) if coded else (frozen_weight(base, dtype), [])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        base: nn.Linear,
        a: torch.Tensor,
        b: torch.Tensor,
        magnitude: torch.Tensor | None,
        square: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        bias = None if base.bias is None else base.bias.float()
        a, b = a.float().contiguous(), b.float().contiguous()  # as the kernel reads them, whatever they were cast to
        of_dora = (None, None) if magnitude is None or square is None else (magnitude.float(), square.float())
        y, thin, kept, gain, norm = torch.ops.tunery.low_rank(flat, *_frozen(base, x.dtype), a, b, scale, *of_dora, bias)
        result: torch.Tensor = y.view(*x.shape[:-1], y.shape[-1])
        ctx.of_result = not len(kept)
        ctx.save_for_backward(flat, a, b, thin, *((result if ctx.of_result else kept, gain, norm) if magnitude is not None else ()))
        ctx.base, ctx.shape, ctx.scale = base, x.shape, scale
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, a, b, thin, *of_gain = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1]).contiguous()
        kept, gain, norm = (of_gain[0].view_as(dy), *of_gain[1:]) if of_gain else (None, None, None)
        weight, coded = _frozen(ctx.base, dy.dtype) if ctx.needs_input_grad[0] else (None, [])
        given = (dy, flat, weight, coded, a, b, thin, ctx.scale, gain, norm, kept, ctx.of_result)
        dx, da, db, dmagnitude = torch.ops.tunery.low_rank_backward(*given)
        return dx.view(ctx.shape) if weight is not None else None, None, da, db, dmagnitude if of_gain else None, None, None


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    coded: list[torch.Tensor],
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    magnitude: torch.Tensor | None,
    square: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """(y, thin; for DoRA what the gain multiplies, unless it can be had from y, the gain and the norm; else three of nothing)"""
    rows, (rank, width), out = len(x), a.shape, len(b)
    y, thin = x.new_empty(rows, out), x.new_empty(rows, rank)
    real, dora = x.device.type != "meta", magnitude is not None
    keeps = dora and (bias is not None or (real and bool(library.call("any_zero", torch.float32, magnitude, out))))
    kept, gain, norm = x.new_empty(rows * keeps, out), a.new_empty(out * dora), a.new_empty(out * dora)
    if real:
        made = (kept if keeps else None, *((gain, norm) if dora else (None, None)))
        given = (x, *_plain(weight, coded), a, b, float(scale), magnitude, square, bias, y, thin, *made)
        library.done(library.call("tile_low_rank", x.dtype, *given, rows, width, out, rank))
    return y, thin, kept, gain, norm


def _backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    coded: list[torch.Tensor],
    a: torch.Tensor,
    b: torch.Tensor,
    thin: torch.Tensor,
    scale: float,
    gain: torch.Tensor | None,
    norm: torch.Tensor | None,
    kept: torch.Tensor | None,
    of_result: bool,
) -> tuple[torch.Tensor, ...]:
    """(dx, of no rows without a weight; da, db; dmagnitude, of nothing without a gain). of_result: whether kept is y."""
    dx, da, db = x.new_empty(len(x) if weight is not None else 0, x.shape[1]), torch.empty_like(a), torch.empty_like(b)
    dmagnitude = a.new_empty(0 if gain is None else len(gain))
    if x.device.type != "meta":
        made = (None if weight is None else dx, da, db, None if gain is None else dmagnitude)
        given = (dy, x, *_plain(weight, coded), a, b, float(scale), thin, gain, norm, kept, *made, int(of_result))
        library.done(library.call("tile_low_rank_backward", x.dtype, *given, *x.shape, dy.shape[1], len(a)))
    return dx, da, db, dmagnitude


def _plain(weight: torch.Tensor | None, coded: list[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    """As the kernel takes a weight: values; or packed ones, code, scales, or the code of scales of scales with what belongs to it."""
    if not coded:
        return weight, None, None, None, None, None, None, None
    code, *scales = coded
    return (None, weight, code, scales[0], None, None, None, None) if len(scales) == 1 else (None, weight, code, None, *scales)


library.define(
    "low_rank(Tensor x, Tensor weight, Tensor[] coded, Tensor a, Tensor b, float scale, Tensor? magnitude, Tensor? square, Tensor? bias) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
)
library.define(
    "low_rank_backward(Tensor dy, Tensor x, Tensor? weight, Tensor[] coded, Tensor a, Tensor b, Tensor thin, float scale, Tensor? gain, "
    "Tensor? norm, Tensor? kept, bool of_result) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
)
