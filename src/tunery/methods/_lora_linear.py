"""The LoRA layer itself: what stands in for a linear layer while an adapter is trained or used. With a magnitude, it is DoRA's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tunery.kernels.library import usable
from tunery.methods import _fused_low_rank, _tile_low_rank
from tunery.methods._frozen import FrozenProduct, frozen_weight


class LoraLinear(nn.Module):
    """A frozen linear layer with a learned low-rank addition, W + sBA; with `dora` its rows also have a learned length.

    The matrices are float32 whatever the base is, since a step of 1e-4 on a weight of 0.1 is lost in bfloat16. They are cast to the
    input's type for the thin products. `base` is a linear layer, dense or quantised.
    """

    start_A: torch.Tensor | None
    start_B: torch.Tensor | None
    square: torch.Tensor

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float, generator: torch.Generator, dora: bool = False) -> None:
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
        self.register_buffer("start_A", None, persistent=False)
        self.register_buffer("start_B", None, persistent=False)
        self.dora = dora
        self._norm: tuple[tuple[int, int], torch.Tensor] | None = None
        if dora:
            length = torch.linalg.vector_norm(frozen_weight(base, torch.float32).float(), dim=1)
            self.register_buffer("square", length**2, persistent=False)
            self.lora_magnitude_vector = nn.Parameter(length)

    def begin_at(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Begin with these matrices instead of none: a (rank, in), b (out, rank). DoRA's magnitudes are then those of the sum."""
        with torch.no_grad():
            self.lora_A.copy_(a)
            self.lora_B.copy_(b)
            if self.dora:
                self.lora_magnitude_vector.copy_(self.norm())

    def count_from(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add BA − b·a instead of BA: what PiSSA learns beyond its start, on a base that stays whole."""
        self.start_A, self.start_B = a.detach().to(self.lora_A), b.detach().to(self.lora_B)

    @property
    def weight(self) -> torch.Tensor:
        """The frozen weight, for code that asks a layer for its type or device."""
        return self.base.weight

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """a (k, in) and b (out, k) in float32, whose product is what is added to W, before the scale; k is the rank.

        After `count_from` it is twice the rank: BA − B₀A₀ = B₀(A − A₀) + (B − B₀)A, a sum without cancellation, so small steps survive
        the cast to bfloat16.
        """
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A - self.start_A, self.lora_A]), torch.cat([self.start_B, self.lora_B - self.start_B], dim=1)

    def norm(self) -> torch.Tensor:
        """(out,) float32: the lengths of the rows of W + sBA, without making it and without a gradient.

        ‖W+sBA‖² = ‖W‖² + 2s·Σ(WAᵀ∘B) + s²·Σ(B(AAᵀ)∘B), row by row; ‖W‖² is kept, since W is frozen.
        """
        key = (self.lora_A._version, self.lora_B._version)
        if not self.training and self._norm is not None and self._norm[0] == key:
            return self._norm[1]
        with torch.inference_mode(False), torch.no_grad():  # what is kept may later stand in a graph
            a, b = self.factors()
            weight = frozen_weight(self.base, torch.float32)
            if usable(weight.data) and usable(a, b, self.square):
                norm = _fused_low_rank.norm(self.square, _fused_low_rank.thin_product(weight.data, a), a, b, self.scale)
            else:
                b = b * self.scale
                square = self.square + 2 * (weight.float() @ a.T * b).sum(1) + (b @ (a @ a.T) * b).sum(1)
                norm = square.sqrt()
                norm = norm + (norm == 0)  # a row of zeros stays one
        self._norm = None if self.training else (key, norm)  # answers are written with weights that no longer change
        return norm

    def train(self, mode: bool = True) -> LoraLinear:
        self._norm = None
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) → (..., out)."""
        a, b = self.factors()
        dropping = self.dropout > 0 and self.training  # acts on the adapter's input alone
        if not dropping and _tile_low_rank.able(x, self.base):
            of_dora = (self.lora_magnitude_vector, self.square) if self.dora else ()
            return _tile_low_rank.product(x, self.base, a, b, self.scale, *of_dora)
        if not self.dora:
            a, b = a.to(x.dtype), b.to(x.dtype) * self.scale
            if dropping:
                return self.base(x) + F.linear(F.linear(F.dropout(x, self.dropout), a), b)
            return _LowRank.apply(x, self.base, a, b)
        b, gain = b * self.scale, self.lora_magnitude_vector / self.norm()
        if dropping:
            kept = F.dropout(x, self.dropout)
            change = (gain - 1) * FrozenProduct.apply(kept, self.base) + gain * F.linear(F.linear(kept.to(a.dtype), a), b)
            return self.base(x) + change.to(x.dtype)
        if _fused_low_rank.able(x, self.base):
            return _fused_low_rank.product(x, self.base, a, b.T, gain)
        return _ScaledLowRank.apply(x, self.base, a, b, gain)


class _LowRank(torch.autograd.Function):
    """y = x Wᵀ + (x Aᵀ) Bᵀ with the thin products added in place, and no gradient computed for the frozen W.

    Written out because autograd would make a full-size tensor for each sum and each scale: on a CPU that costs as much as the product.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, base: nn.Linear, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """x: (..., in), base: W (out, in) and its bias, a: (rank, in), b: (out, rank) with the scale in it."""
        flat = x.reshape(-1, x.shape[-1])
        thin = flat @ a.T
        bias = None if base.bias is None else base.bias.to(x.dtype)
        y = F.linear(flat, frozen_weight(base, x.dtype), bias).addmm_(thin, b.T)
        ctx.save_for_backward(flat, a, b, thin)
        ctx.base, ctx.shape = base, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, a, b, thin = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        dthin = dy @ b
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ frozen_weight(ctx.base, dy.dtype)).addmm_(dthin, a).view(ctx.shape)
        return dx, None, dthin.T @ flat, dy.T @ thin


class _ScaledLowRank(torch.autograd.Function):
    """y = g ∘ (x Wᵀ + (x Aᵀ) Bᵀ) + bias: DoRA with g = m / ‖W+sBA‖, where the norm has no gradient (Liu et al. 2024, section 4.3).

    Beside the product with W all is float32. With the thin products in bfloat16 a run was 1.2 times as far from float32 as PEFT's.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, base: nn.Linear, a: torch.Tensor, b: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        """As `_LowRank`, with a, b and gain (out,) in float32."""
        flat = x.reshape(-1, x.shape[-1])
        thin = flat.to(a.dtype) @ a.T
        sum_ = F.linear(flat, frozen_weight(base, x.dtype)).to(a.dtype).addmm_(thin, b.T)
        y = sum_ * gain
        if base.bias is not None:
            y += base.bias
        ctx.save_for_backward(flat, a, b, thin, sum_.to(x.dtype), gain)
        ctx.base, ctx.shape = base, x.shape
        return y.to(x.dtype).view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, a, b, thin, sum_, gain = ctx.saved_tensors
        dy = grads[0].reshape(-1, grads[0].shape[-1]).to(a.dtype)
        dgain = (dy * sum_).sum(0)
        dsum = dy * gain
        dthin = dsum @ b
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dsum.to(flat.dtype) @ frozen_weight(ctx.base, flat.dtype)).to(a.dtype).addmm_(dthin, a).to(flat.dtype).view(ctx.shape)
        return dx, None, dthin.T @ flat.to(a.dtype), dsum.T @ thin, dgain
