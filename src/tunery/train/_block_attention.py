"""Attention that skips what a pack's mask hides: queries in blocks, each block with just the keys that one of its queries may look at.

    for a block of queries:   out = softmax(Q K[keys]ᵀ · scale + mask) V[keys]        keys: those that any query of the block sees

Blocks that need about as many keys are computed in one call of torch's own CPU kernel (flash attention, Dao et al. 2022, whose softmax is
in float32), so the result is what the kernel gives for the whole. The query heads that share a key head are laid one after the other into
one block, so keys are never repeated for them. Of a pack of headlines, which see 36 common tokens and their own row, a fifth of the pairs
remains; of one long row, five eighths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunery.kernels import library

SIZES = (32, 64, 128, 256)
"""Queries of a block that are tried: smaller ones skip more and gather more."""
GATHER = 48
"""What gathering a key for a block costs in pairs of a query and a key, for each query head that shares it: measured with SmolLM2-135M's
heads on two AVX2 cores, where blocks of 32 were best for headlines (7.8 ms against 24.9 for the whole of 511 tokens, both ways) and blocks
of 128 for one row of 511 (21.7 against 23.2)."""
CALL = 1000
"""What a call of the kernel costs, in the same unit."""
ALIKE = 1.3
"""Blocks share a call when the largest needs at most this many times the keys of the smallest; the smaller ones are filled up, masked."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Group:
    """Blocks of one call: `blocks` (N,) their numbers, `keys` (N, K) places of their keys, `mask` (N, 1, heads·size, K) additive."""

    blocks: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Blocks:
    """How the queries of a pack are cut: block n holds queries n·size to (n+1)·size."""

    size: int
    count: int
    groups: tuple[Group, ...]


def cut(allowed: np.ndarray, heads: int, dtype: torch.dtype, device: torch.device) -> Blocks:
    """The cheapest way to cut. allowed: (T, T) bool, may token i look at token j; heads: query heads that share a key head."""
    best: tuple[float, int, list[np.ndarray], np.ndarray] | None = None
    for size in SIZES:
        count = -(-len(allowed) // size)
        needed = np.logical_or.reduceat(allowed, np.arange(0, len(allowed), size), axis=0)  # (count, T)
        keys = needed.sum(axis=1)
        groups = _alike(keys)
        cost = sum(len(g) * keys[g].max() * (size + GATHER / heads) + CALL for g in groups)
        if best is None or cost < best[0]:
            best = (float(cost), size, groups, needed)
        if count == 1:
            break
    assert best is not None
    _, size, groups, needed = best
    return Blocks(size, len(needed), tuple(_group(allowed, needed, g, size, heads, dtype, device) for g in groups))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: Blocks, scale: float | None) -> torch.Tensor:
    """q: (1, heads, T, d), k and v: (1, key heads, T, d) → (1, T, heads, d), with gradients."""
    out: torch.Tensor = _Attention.apply(q, k, v, blocks, scale)
    return out


def _alike(keys: np.ndarray) -> list[np.ndarray]:
    """The blocks' numbers, those together that need about as many keys."""
    groups: list[list[int]] = []
    for block in np.argsort(keys, kind="stable").tolist():
        if groups and keys[block] <= ALIKE * keys[groups[-1][0]]:
            groups[-1].append(block)
        else:
            groups.append([block])
    return [np.sort(g) for g in groups]


def _group(
    allowed: np.ndarray, needed: np.ndarray, chosen: np.ndarray, size: int, heads: int, dtype: torch.dtype, device: torch.device
) -> Group:
    width = int(needed[chosen].sum(axis=1).max())
    keys = np.zeros((len(chosen), width), np.int64)
    mask = np.zeros((len(chosen), size, width), bool)
    for n, block in enumerate(chosen.tolist()):
        own = np.flatnonzero(needed[block])
        rows = allowed[block * size : (block + 1) * size]
        keys[n, : len(own)] = own
        mask[n, : len(rows), : len(own)] = rows[:, own]
        mask[n, len(rows) :, 0] = True  # what fills the last block up looks at something, so that it is a number
    additive = torch.zeros(mask.shape, dtype=dtype, device="cpu").masked_fill_(torch.from_numpy(~mask), float("-inf"))
    return Group(
        torch.from_numpy(chosen).to(device),
        torch.from_numpy(keys).to(device),
        additive.repeat(1, heads, 1)[:, None].contiguous().to(device),
    )


class _Attention(torch.autograd.Function):
    """Keeps queries, keys and values as they came; what is gathered for the blocks is gathered once more for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: Blocks, scale: float | None) -> torch.Tensor:
        key_heads, tokens = k.shape[1], q.shape[2]
        queries, keys, values = _cut(q, blocks), _rows(k), _rows(v)
        out = queries.new_empty(queries.shape)
        kept = []
        for g in blocks.groups:
            of_group = _of(queries, g, key_heads), _gathered(keys, g, key_heads), _gathered(values, g, key_heads)
            part, logsumexp = _forward(*of_group, 0.0, False, attn_mask=g.mask, scale=scale)
            _put(out, g, part)
            kept += [part, logsumexp]
        ctx.save_for_backward(q, k, v, *kept)
        ctx.blocks, ctx.scale = blocks, scale
        return out.view(-1, *out.shape[2:])[None, :tokens]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        key_heads, tokens = k.shape[1], q.shape[2]
        queries, douts, keys, values = _cut(q, ctx.blocks), _cut(grads[0].transpose(1, 2), ctx.blocks), _rows(k), _rows(v)
        dq = queries.new_empty(queries.shape)
        # Key heads one after the other, since that is how the kernel gives them; float32, since each is a sum of many.
        dk, dv = (torch.zeros(key_heads * tokens, x.shape[3], device=x.device) for x in (k, v))
        for n, g in enumerate(ctx.blocks.groups):
            part, logsumexp = kept[2 * n : 2 * n + 2]
            of_group = _of(queries, g, key_heads), _gathered(keys, g, key_heads), _gathered(values, g, key_heads)
            dout = _of(douts, g, key_heads)
            if q.dtype == torch.bfloat16 and q.device.type == "cpu" and library.usable(q):
                a, b, c = _written_out(dout, *of_group, part, logsumexp, g.mask, ctx.scale)
            else:
                a, b, c = _backward(dout, *of_group, part, logsumexp, 0.0, False, attn_mask=g.mask, scale=ctx.scale)
            _put(dq, g, a)
            places = (g.keys[:, None] + torch.arange(0, key_heads * tokens, tokens, device=k.device)[:, None]).flatten()
            for total, more in ((dk, b), (dv, c)):  # a key that several blocks look at has the sum of what they say
                total.index_add_(0, places, more.reshape(-1, more.shape[-1]).to(total.dtype))
        dq = dq.view(-1, *dq.shape[2:])[:tokens].transpose(0, 1)[None]
        return dq, dk.view(k.shape).to(k.dtype), dv.view(v.shape).to(v.dtype), None, None


def _written_out(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    mask: torch.Tensor,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k and v as torch's kernel gives them in bfloat16, by matrix products: that kernel takes two to four times as long.

    As there, what an exponential is taken of is float32, and shares are bfloat16 when they are multiplied.
    """
    n, heads, rows, d = q.shape
    scores = q.float() @ k.float().transpose(-1, -2)
    dp = dout.float() @ v.float().transpose(-1, -2)
    delta = (dout.float() * out.float()).sum(-1)
    shares, dscores = (torch.empty(scores.shape, dtype=q.dtype) for _ in range(2))
    figures = (n, heads, rows, k.shape[2], float(scale or d**-0.5))
    library.call("attention_backward", q.dtype, scores, dp, mask, logsumexp.contiguous(), delta, shares, dscores, *figures)
    return dscores @ k, dscores.transpose(-1, -2) @ q, shares.transpose(-1, -2) @ dout


def _cut(x: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """(1, heads, T, d) → (count, size, heads, d); the last block is filled up with zeros."""
    _, heads, tokens, d = x.shape
    filled = x.new_empty(blocks.count * blocks.size, heads, d)
    filled[:tokens] = x[0].transpose(0, 1)
    filled[tokens:] = 0
    return filled.view(blocks.count, blocks.size, heads, d)


def _of(x: torch.Tensor, group: Group, key_heads: int) -> torch.Tensor:
    """The group's blocks of queries: (count, size, heads, d) → (N, key heads, heads a key head · size, d)."""
    own = x.index_select(0, group.blocks).unflatten(2, (key_heads, -1))
    return own.permute(0, 2, 3, 1, 4).flatten(2, 3)


def _put(x: torch.Tensor, group: Group, values: torch.Tensor) -> None:
    """Write the group's blocks, as the kernel gives them, into x: (count, size, heads, d)."""
    x.index_copy_(0, group.blocks, values.unflatten(2, (-1, x.shape[1])).permute(0, 3, 1, 2, 4).flatten(2, 3))


def _rows(x: torch.Tensor) -> torch.Tensor:
    """(1, key heads, T, d) → (T, key heads · d): all heads of a key in one row, to be gathered together."""
    return x[0].transpose(0, 1).flatten(1)


def _gathered(rows: torch.Tensor, group: Group, key_heads: int) -> torch.Tensor:
    """The keys or values of the group's blocks: (N, key heads, K, d)."""
    return rows.index_select(0, group.keys.flatten()).view(*group.keys.shape, key_heads, -1).transpose(1, 2)


def possible(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> bool:
    """Whether torch's CPU kernel computes these; on shapes alone (the meta device) the CPU's way is counted."""
    kinds: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)
    return (
        q.device.type in ("cpu", "meta")
        and q.shape[0] == 1
        and q.shape[-1] == v.shape[-1]
        and q.shape[1] % k.shape[1] == 0
        and q.dtype == k.dtype == v.dtype
        and q.dtype in kinds
        and dropout == 0
    )
