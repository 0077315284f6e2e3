"""Four-bit NormalFloat weights written out in one pass, with their double quantised scales (Dettmers et al. 2023, section 3)."""

from __future__ import annotations

from typing import Any

import torch

from tunery.kernels.library import call, usable

BLOCK, COARSE = 64, 256
"""Values that share a scale; scales that share a scale of their own."""


def dense(packed: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor | None:
    """The weight in `dtype`, or None where the kernel does not take this: packed (N / 2, 1) uint8, state: bitsandbytes' `QuantState`."""
    # Of rows that are no whole blocks bitsandbytes makes something else on some processors, and everyone who loads the model gets that.
    whole = state.shape[-1] % BLOCK == 0
    fits = whole and state.quant_type == "nf4" and state.blocksize == BLOCK and state.code.dtype == torch.float32
    if not (fits and packed.device.type == "cpu" and usable(torch.empty(0, dtype=dtype))):
        return None
    weight = torch.empty(state.shape, dtype=dtype)
    if not state.nested:
        call("nf4", dtype, packed, state.code, state.absmax.float(), None, None, None, 0.0, weight, weight.numel())
    elif state.state2.blocksize == COARSE and state.absmax.dtype == torch.uint8:
        inner = state.state2
        call(
            "nf4", dtype, packed, state.code, None, state.absmax, inner.code, inner.absmax, state.offset.item(), weight, weight.numel()
        )  # fmt: skip
    else:
        return None
    return weight
