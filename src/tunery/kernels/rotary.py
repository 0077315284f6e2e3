"""Rotary positions (Su et al. 2021, arXiv:2104.09864) in one pass."""

from __future__ import annotations

from typing import Any

import torch

from tunery.kernels.library import call


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x · cos + rotate_half(x) · sin, with gradients. x: (1, heads, T, d), of which a token's heads lie together, cos, sin: (1, T, d); or of
    one token in each row x: (R, heads, 1, d), cos, sin: (R, 1, d)."""
    y: torch.Tensor = _Rotary.apply(x, cos, sin)
    return y


def possible(x: torch.Tensor, cos: torch.Tensor) -> bool:
    """Whether `rotate` takes these shapes."""
    return x.dim() == 4 and 1 in (x.shape[0], x.shape[2]) and cos.shape == (x.shape[0], x.shape[2], x.shape[3]) and x.shape[3] % 2 == 0


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
    one = x.shape[0] != 1
    rows = x[:, :, 0] if one else x[0].transpose(0, 1)  # (tokens, heads, d)
    if rows.stride(2) != 1 or rows.stride(1) != rows.shape[2]:
        rows = rows.contiguous()
    if x.device.type == "meta":
        y = rows.neg()
        return y[:, :, None] if one else y.transpose(0, 1)[None]
    y = torch.empty(rows.shape, dtype=x.dtype)
    call("rotary", x.dtype, rows, cos.contiguous(), sin.contiguous(), y, *rows.shape, rows.stride(0), int(back))
    return y[:, :, None] if one else y.transpose(0, 1)[None]
