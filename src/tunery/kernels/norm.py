"""RMS normalisation (Zhang & Sennrich 2019, arXiv:1910.07467) in one pass."""

from __future__ import annotations

from typing import Any

import torch

from tunery.kernels.library import call


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / √(mean(x²) + eps) · weight, with gradients. x: (..., width), weight: (width,)."""
    y: torch.Tensor = _RmsNorm.apply(x, weight, eps)
    return y


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x, w = x.contiguous(), weight.float()
        rows = x.numel() // x.shape[-1]
        r = torch.empty(rows, device=x.device)
        ctx.save_for_backward(x, weight, r)
        if x.device.type == "meta":
            return x.neg()  # a pass over as much memory
        y = torch.empty_like(x)
        call("rms_forward", x.dtype, x, w, y, r, rows, x.shape[-1], float(eps))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        dy, w = grads[0].contiguous(), weight.float()
        dweight = None
        if ctx.needs_input_grad[1]:
            flat = x.view(-1, x.shape[-1]).float()
            dweight = (dy.view_as(flat).float() * flat * r[:, None]).sum(0).to(weight.dtype)
        if x.device.type == "meta":
            return dy * x, dweight, None
        dx = torch.empty_like(x)
        call("rms_backward", x.dtype, dy, x, w, r, dx, len(r), x.shape[-1])
        return dx, dweight, None
