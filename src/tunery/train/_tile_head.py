"""Cross-entropy behind an output layer in tiles of bfloat16, without logits in memory (`kernels/tile_head.c`)."""

from __future__ import annotations

import torch

from tunery.kernels import library
from tunery.kernels.library import SIDE


def able(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernel takes these: x (S, width), weight (vocabulary, width)."""
    fits = x.dtype == torch.bfloat16 and len(x) > 0 and not any(n % SIDE for n in weight.shape) and weight.is_contiguous()
    return fits and library.tiles() and library.usable(x, weight.data)


def loss(
    x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(nats (S,) float32, the gradient of Σ weights · nats for x; of no rows where weights is None)."""
    found: tuple[torch.Tensor, torch.Tensor] = torch.ops.tunery.head_loss(x, weight, targets, weights, factor)
    return found


def _loss(
    x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.contiguous()
    nats, dx = x.new_empty(len(x), dtype=torch.float32), x.new_empty(0 if weights is None else len(x), x.shape[1])
    if x.device.type != "meta":
        scales = None if weights is None else weights.float().contiguous()
        given = (x, weight, targets.contiguous(), scales, float(factor), nats, None if scales is None else dx)
        library.done(library.call("tile_head", x.dtype, *given, *x.shape, len(weight)))
    return nats, dx


library.define("head_loss(Tensor x, Tensor weight, Tensor targets, Tensor? weights, float factor) -> (Tensor, Tensor)", _loss)
