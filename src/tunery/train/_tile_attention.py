"""Attention inside a pack in tiles of bfloat16: blocks of 32 queries, each with those blocks of 32 keys of which it may see some.

One call for each layer and direction (`kernels/tile_attention.c`): nothing is gathered, no scores leave the core's caches. Both are operations
of torch's, so that whoever watches operations (the plan on shapes alone, the profiler) sees them and what they compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunery.kernels import library
from tunery.kernels.library import SIDE


@dataclass(frozen=True)
class Pairs:
    """Of a pack, which blocks of queries see which of keys: those of query block n are starts[n] to starts[n + 1].

    starts: (blocks + 1), columns: (pairs,) the key blocks, both int32; bits: (pairs, 32) int32, bit j of row i: may query i see key j.
    widest: the most key blocks that a block of queries sees.
    """

    starts: torch.Tensor
    columns: torch.Tensor
    bits: torch.Tensor
    widest: int


def pairs(allowed: np.ndarray) -> Pairs:
    """allowed: (T, K) bool, may query i look at key j."""
    blocks, key_blocks = (-(-n // SIDE) for n in allowed.shape)
    if any(n % SIDE for n in allowed.shape):
        filled = np.zeros((blocks * SIDE, key_blocks * SIDE), bool)
        filled[: len(allowed), : allowed.shape[1]] = allowed
        allowed = filled
    squares = allowed.reshape(blocks, SIDE, key_blocks, SIDE).transpose(0, 2, 1, 3)
    rows, columns = np.nonzero(squares.any((2, 3)))
    bits = np.packbits(squares[rows, columns], axis=-1, bitorder="little").view("<i4")[..., 0]
    counts = np.bincount(rows, minlength=blocks)
    starts = np.r_[0, np.cumsum(counts)].astype(np.int32)
    tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in (starts, columns.astype(np.int32), bits)]
    return Pairs(tensors[0], tensors[1], tensors[2], int(counts.max()))


def possible(q: torch.Tensor) -> bool:
    """Whether the kernel computes these queries' attention."""
    return q.dtype == torch.bfloat16 and q.shape[-1] % SIDE == 0 and library.usable(q) and library.tiles()


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, among: Pairs, scale: float | None) -> torch.Tensor:
    """q: (1, heads, T, d), k and v: (1, key heads, K, d) → (1, T, heads, d), with gradients where K is T."""
    out: torch.Tensor = _Attention.apply(q, k, v, among, scale or q.shape[-1] ** -0.5)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, among: Pairs, scale: float) -> torch.Tensor:
        out, logsumexp = torch.ops.tunery.tile_attention(q, k, v, among.starts, among.columns, among.bits, among.widest, scale)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.among, ctx.scale = among, scale
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        among = ctx.among.starts, ctx.among.columns, ctx.among.bits, ctx.among.widest
        dq, dk, dv = torch.ops.tunery.tile_attention_backward(grads[0], *ctx.saved_tensors, *among, ctx.scale)
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), None, None


def _strided(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """With values of a head side by side: the tensor, what lies between two tokens and between two heads."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x, x.stride(2), x.stride(1)


def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    bits: torch.Tensor,
    widest: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    _, heads, tokens, d = q.shape
    blocks = len(starts) - 1
    out, logsumexp = q.new_empty(1, tokens, heads, d), q.new_empty(heads, blocks * SIDE, dtype=torch.float32)
    if q.device.type != "meta":
        (q, *of_q), (k, *of_k), (v, *of_v) = map(_strided, (q, k, v))
        figures = (blocks, widest, tokens, k.shape[2], heads, k.shape[1], d, float(scale))
        library.done(library.call("tile_attention", q.dtype, q, *of_q, k, *of_k, v, *of_v, starts, columns, bits, out, logsumexp, *figures))
    return out, logsumexp


def _backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    starts: torch.Tensor,
    columns: torch.Tensor,
    bits: torch.Tensor,
    widest: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _, heads, tokens, d = q.shape
    dq, dk, dv = (x.new_empty(1, tokens, x.shape[1], d) for x in (q, k, v))
    if q.device.type != "meta":
        (q, *of_q), (k, *of_k), (v, *of_v) = map(_strided, (q, k, v))
        figures = (len(starts) - 1, widest, tokens, heads, k.shape[1], d, float(scale))
        given = (q, *of_q, k, *of_k, v, *of_v, starts, columns, bits, out, logsumexp, dout.contiguous())
        library.done(library.call("tile_attention_backward", q.dtype, *given, dq, dk, dv, *figures))
    return dq, dk, dv


_among = "Tensor starts, Tensor columns, Tensor bits, int widest, float scale"
library.define(f"tile_attention(Tensor q, Tensor k, Tensor v, {_among}) -> (Tensor, Tensor)", _forward)
library.define(
    f"tile_attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, {_among}) -> (Tensor, Tensor, Tensor)",
    _backward,
)
