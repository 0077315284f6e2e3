"""A frozen linear layer in tiles of bfloat16: what an adapted one computes (`tile_low_rank.c`), with nothing added to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunery.kernels import library
from tunery.kernels.library import SIDE


def able(x: torch.Tensor, width: int, out: int, weight: torch.Tensor | None) -> bool:
    """Whether the kernel takes this input (..., width) and a weight (out, width); None stands for one that is written out for it."""
    if x.dtype != torch.bfloat16 or width % SIDE or out % SIDE or x.numel() < SIDE * width:
        return False
    return library.tiles() and library.usable(x, *(() if weight is None else (weight,))) and (weight is None or weight.is_contiguous())


class TileLinear(nn.Linear):
    """What `fused.fuse` makes of a linear layer: as before where it learns, or where the kernel does not take it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) → (..., out)."""
        frozen = not (self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad))
        if not frozen or not able(x, self.in_features, self.out_features, self.weight.data):
            return super().forward(x)
        y: torch.Tensor = _Linear.apply(x, self)
        return y


class _Linear(torch.autograd.Function):
    """Its result is no view, as others may add to it in place, which PEFT's layers do."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.data.float()
        y: torch.Tensor = torch.ops.tunery.frozen_linear(x.contiguous(), layer.weight.data, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        dx: torch.Tensor = torch.ops.tunery.frozen_linear_backward(grads[0].contiguous(), ctx.layer.weight.data)
        return dx, None


def _forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    y = x.new_empty(*x.shape[:-1], len(weight))
    if x.device.type != "meta":
        given = (x, weight, *[None] * 9, 1.0, None, None, bias, y, *[None] * 4)
        library.done(library.call("tile_low_rank", x.dtype, *given, x.shape[:-1].numel(), x.shape[-1], len(weight), 0))
    return y


def _backward(dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    dx = dy.new_empty(*dy.shape[:-1], weight.shape[1])
    if dy.device.type != "meta":
        given = (dy, None, weight, *[None] * 9, 1.0, *[None] * 4, dx, *[None] * 3, 0)
        library.done(library.call("tile_low_rank_backward", dy.dtype, *given, dx.shape[:-1].numel(), dx.shape[-1], dy.shape[-1], 0))
    return dx


library.define("frozen_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _forward)
library.define("frozen_linear_backward(Tensor dy, Tensor weight) -> Tensor", _backward)
