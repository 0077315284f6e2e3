"""silu(gate) · up, the middle of a gated feed-forward layer (Shazeer 2020, arXiv:2002.05202), in one pass."""

from __future__ import annotations

from typing import Any

import torch

from tunery.kernels.library import call


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """gate, up: (..., width), both whole or both halves of one tensor → (..., width), with gradients."""
    y: torch.Tensor = _SwiGlu.apply(gate, up)
    return y


def _stride(gate: torch.Tensor, up: torch.Tensor) -> int:
    """Values from one row to the next, the same for both; 0 where the rows are not laid out so."""
    width = gate.shape[-1]
    for t in (gate, up):
        if t.stride(-1) != 1 or any(t.stride(n) != t.stride(n + 1) * t.shape[n + 1] for n in range(t.dim() - 2) if t.shape[n] > 1):
            return 0
    apart = gate.stride(-2) if gate.dim() > 1 else width
    return apart if gate.stride() == up.stride() else 0


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if not _stride(gate, up):
            gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        if gate.device.type == "meta":
            return torch.mul(gate, up)
        y = torch.empty(gate.shape, dtype=gate.dtype)
        width = gate.shape[-1]
        call("swiglu_forward", gate.dtype, gate, up, y, gate.numel() // width, width, _stride(gate, up))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        dy = grads[0].contiguous()
        if gate.device.type == "meta":
            return dy * up, dy * gate
        width = gate.shape[-1]
        dgate, dup = torch.empty(gate.shape, dtype=gate.dtype), torch.empty(gate.shape, dtype=gate.dtype)
        call("swiglu_backward", gate.dtype, dy, gate, up, dgate, dup, gate.numel() // width, width, _stride(gate, up), width)
        return dgate, dup
