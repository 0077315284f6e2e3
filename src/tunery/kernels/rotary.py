"""Rotary positions (Su et al. 2021, arXiv:2104.09864) in one pass."""

from __future__ import annotations

from typing import Any

import torch

from tunery.kernels.library import call


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x · cos + rotate_half(x) · sin, with gradients. x: (1, heads, T, d), of which a row's heads lie together; cos, sin: (1, T, d)."""
    y: torch.Tensor = _Rotary.apply(x, cos, sin)
    return y


def possible(x: torch.Tensor, cos: torch.Tensor) -> bool:
    """Whether `rotate` takes these shapes."""
    return x.dim() == 4 and x.shape[0] == 1 and cos.shape == (1, x.shape[2], x.shape[3]) and x.shape[3] % 2 == 0


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, sin, back=True), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, back: bool) -> torch.Tensor:
    rows = x[0].transpose(0, 1)  # (T, heads, d)
    if rows.stride(2) != 1 or rows.stride(1) != rows.shape[2]:
        rows = rows.contiguous()
    if x.device.type == "meta":
        return rows.neg().transpose(0, 1)[None]
    y = torch.empty(rows.shape, dtype=x.dtype)
    call("rotary", x.dtype, rows, cos.contiguous(), sin.contiguous(), y, *rows.shape, rows.stride(0), int(back))
    return y.transpose(0, 1)[None]
