"""Cross-entropy behind a plain output layer, with the gradient made in the same pass over the logits.

    logits = factor · hidden Wᵀ        nats[s] = log Σ exp(logits[s]) - logits[s, targets[s]]
    d(Σ weights · nats) / d hidden = factor · (weights · (softmax(logits) - onehot)) W

The loss is a sum, so its gradient is known up to a scalar as soon as the logits are: nothing is computed a second time, and the logits are
gone before the layers' backward pass begins. Of the logits, which are as many as the vocabulary is long, `LOGITS` rows exist at a time in
the model's type, and a tile that fits the processor's cache in float32: on a CPU autograd's own way, which writes them out in float32
half a dozen times, took four times as long. Where there are kernels in tiles, and the output layer is not trained, no logits lie in
memory at all (`_tile_head`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from tunery.train import _tile_head

LOGITS = 512
"""Rows of logits at a time: 50 MB in bfloat16 with a vocabulary of 49,152."""

TILE = 400_000
"""Logits of a tile in float32: 1.6 MB, a core's second cache. On a GPU all rows are one tile."""


def plain(output: nn.Module) -> bool:
    """Whether this output layer is one that is handled here: an ordinary matrix that lies whole in memory, without a bias."""
    weight = getattr(output, "weight", None)
    # A weight that several processes share is a DTensor, or is empty until its layer is called.
    whole = isinstance(weight, nn.Parameter) and type(weight.data) is torch.Tensor and weight.numel() > 0
    return type(output) is nn.Linear and output.bias is None and whole


def summed(hidden: torch.Tensor, output: nn.Linear, targets: torch.Tensor, weights: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """The scalar Σ weights · nats in float32, with gradients for hidden (S, width) and, where it is trained, the layer's weight.

    targets: (S,) token ids, weights: (S,) float32.
    """
    total: torch.Tensor = _Summed.apply(hidden, output.weight, targets, weights, factor)
    return total


def nats(hidden: torch.Tensor, output: nn.Linear, targets: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """(S,) float32: the negative log-probability of each target, with gradients for hidden and the weight.

    Here the gradient of each is not known before the backward pass, which therefore makes the logits again.
    """
    found: torch.Tensor = _Nats.apply(hidden, output.weight, targets, factor)
    return found


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, factor: float
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[:2]
        total = torch.zeros((), device=hidden.device)
        grads = [torch.empty_like(t) if want else None for t, want in zip((hidden, weight), wanted, strict=True)]
        with _product_type(hidden) as dtype:
            x, w = hidden.to(dtype), weight.to(dtype)
            by_tiles = not wanted[1] and _tile_head.able(x, w)
            for n, part in enumerate(_parts(len(x))):
                if by_tiles:
                    nats, dx = _tile_head.loss(x[part], w, targets[part], weights[part] if wanted[0] else None, factor)
                    total += nats.dot(weights[part])
                    if grads[0] is not None:
                        grads[0][part] = dx
                    continue
                logits = x[part] @ w.T
                for tile in _tiles(logits):
                    total += (_tile(logits[tile], targets[part][tile], factor, weights[part][tile] if any(wanted) else None)).dot(
                        weights[part][tile]
                    )
                _products(logits, x[part], w, grads, part, first=n == 0)
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dhidden, dweight = (None if g is None else g * grads[0] for g in ctx.saved_tensors)
        return dhidden, dweight, None, None, None


class _Nats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, factor: float) -> torch.Tensor:
        found = torch.empty(len(hidden), device=hidden.device)
        with _product_type(hidden) as dtype:
            x, w = hidden.to(dtype), weight.to(dtype)
            by_tiles = _tile_head.able(x, w)
            for part in _parts(len(x)):
                if by_tiles:
                    found[part] = _tile_head.loss(x[part], w, targets[part], None, factor)[0]
                    continue
                logits = x[part] @ w.T
                for tile in _tiles(logits):
                    found[part][tile] = _tile(logits[tile], targets[part][tile], factor, None)
        ctx.save_for_backward(hidden, weight, targets)
        ctx.factor, ctx.dtype = factor, dtype
        return found

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        found = [torch.empty_like(t) if want else None for t, want in zip((hidden, weight), ctx.needs_input_grad[:2], strict=True)]
        x, w = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        dx = found[0] if found[1] is None and _tile_head.able(x, w) else None
        for n, part in enumerate(_parts(len(x))):
            if dx is not None:
                dx[part] = _tile_head.loss(x[part], w, targets[part], grads[0][part], ctx.factor)[1]
                continue
            logits = x[part] @ w.T
            for tile in _tiles(logits):
                _tile(logits[tile], targets[part][tile], ctx.factor, grads[0][part][tile])
            _products(logits, x[part], w, found, part, first=n == 0)
        return *found, None, None


def _tile(logits: torch.Tensor, targets: torch.Tensor, factor: float, weights: torch.Tensor | None) -> torch.Tensor:
    """(rows,) float32 nats of a few rows of logits; with `weights` the logits become the gradient of the weighted sum, in place."""
    y = logits.float() if logits.dtype != torch.float32 else logits.clone()
    if factor != 1.0:
        y.mul_(factor)
    targets = targets[:, None]
    highest = y.amax(-1, keepdim=True)
    at = y.gather(1, targets)
    sums = y.sub_(highest).exp_().sum(-1, keepdim=True)
    if weights is not None:
        scale = weights[:, None] * factor
        y.mul_(scale / sums).scatter_add_(1, targets, -scale)
        logits.copy_(y)
    return (sums.log() + highest - at)[:, 0]


def _products(dlogits: torch.Tensor, x: torch.Tensor, w: torch.Tensor, grads: list[torch.Tensor | None], part: slice, first: bool) -> None:
    """The gradients of hidden (its rows `part`) and of the weight (a sum over the parts) from the logits' gradient."""
    dhidden, dweight = grads
    if dhidden is not None:
        dhidden[part] = dlogits @ w
    if dweight is not None:
        more = dlogits.T @ x
        if first:
            dweight.copy_(more)
        else:
            dweight += more


class _product_type:
    """The type in which autocast would multiply, or the tensor's own; inside the block autocast is off, so that nothing else is cast."""

    def __init__(self, x: torch.Tensor) -> None:
        kind = x.device.type
        known = torch.amp.is_autocast_available(kind)  # shapes alone have none
        self.dtype = torch.get_autocast_dtype(kind) if known and torch.is_autocast_enabled(kind) else x.dtype
        self.off = torch.autocast(kind, enabled=False) if known else nullcontext()

    def __enter__(self) -> torch.dtype:
        self.off.__enter__()
        return self.dtype

    def __exit__(self, *error: Any) -> None:
        self.off.__exit__(*error)


def _parts(rows: int) -> Iterator[slice]:
    return (slice(start, min(start + LOGITS, rows)) for start in range(0, max(rows, 1), LOGITS))


def _tiles(logits: torch.Tensor) -> Iterator[slice]:
    rows, vocabulary = logits.shape
    small = logits.device.type in ("cpu", "meta")  # the plan counts the CPU's way on shapes alone
    size = max(1, TILE // vocabulary) if small else max(1, rows)
    return (slice(start, start + size) for start in range(0, rows, size))
