"""Four-bit NormalFloat weights written out in one pass, with their double quantised scales (Dettmers et al. 2023, section 3)."""

from __future__ import annotations

from typing import Any

import torch

from tunery.kernels.library import call, usable

BLOCK, COARSE = 64, 256
"""Values that share a scale; scales that share a scale of their own."""


def parts(packed: torch.Tensor, state: Any) -> list[torch.Tensor] | None:
    """What the packed values stand for, as the kernels take it: [code, scales], or [code, fine scales, their code, their scales, offset].

    None where they do not take this: packed (N / 2, 1) uint8, state: bitsandbytes' `QuantState`.
    """
    # Of rows that are no whole blocks bitsandbytes makes something else on some processors, and everyone who loads the model gets that.
    whole = state.shape[-1] % BLOCK == 0
    if not (
        whole
        and state.quant_type == "nf4"
        and state.blocksize == BLOCK
        and state.code.dtype == torch.float32
        and packed.device.type == "cpu"
    ):
        return None
    if not state.nested:
        return [state.code, state.absmax.float()]
    inner = state.state2
    if inner.blocksize != COARSE or state.absmax.dtype != torch.uint8:
        return None
    return [state.code, state.absmax, inner.code, inner.absmax, state.offset.float()]


def dense(packed: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor | None:
    """The weight in `dtype`, or None where the kernel does not take this; see `parts`."""
    found = parts(packed, state) if usable(torch.empty(0, dtype=dtype)) else None
    if found is None:
        return None
    weight = torch.empty(state.shape, dtype=dtype)
    code, *scales = found
    given = (scales[0], None, None, None, 0.0) if len(scales) == 1 else (None, *scales[:-1], scales[-1].item())
    call("nf4", dtype, packed, code, *given, weight, weight.numel())
    return weight
