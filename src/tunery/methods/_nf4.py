"""Four-bit NormalFloat weights with double quantisation, by bitsandbytes.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section 3: blocks of 64 values share a scale, blocks of 256 scales
share a scale of their own, which makes 4.127 bits a value.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import bitsandbytes
import torch
from torch import nn

from tunery.kernels import nf4
from tunery.methods._frozen import FrozenProduct


class Nf4Linear(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
    """bitsandbytes' layer, computed in the type of its input.

    Its own forward would, in evaluation on a CPU with avx512_bf16, repack the weights and compute in bfloat16 whatever the input is: a
    float32 proof needs float32.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) → (..., out)."""
        y: torch.Tensor = FrozenProduct.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """(out, in): the dequantised weight."""
        known = nf4.dense(self.weight.data, self.weight.quant_state, dtype)
        if known is not None:
            return known
        state = copy.copy(self.weight.quant_state)
        state.dtype = dtype
        weight: torch.Tensor = bitsandbytes.functional.dequantize_4bit(self.weight.data, state)
        return weight

    @property
    def nbytes(self) -> int:
        """What the packed weight takes with its scales."""
        state = self.weight.quant_state
        inner = (state.state2.absmax, state.state2.code, state.offset) if state.nested else ()
        return int(sum(t.nbytes for t in (self.weight.data, state.absmax, state.code, *inner)))


def quantise(layer: nn.Linear, double: bool, from_dtype: torch.dtype | None = None) -> Nf4Linear:
    """The layer with its weight in four bits; the bias stays. `from_dtype`: round the weight to this type first (None: take it as it is).

    double: whether the scales are quantised too.
    """
    weight = layer.weight.detach().to(from_dtype or layer.weight.dtype).contiguous()
    new = Nf4Linear(layer.in_features, layer.out_features, bias=False, compress_statistics=double, quant_type="nf4", device="meta")
    new.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, compress_statistics=double, quant_type="nf4", module=new).to(
        weight.device
    )
    new.bias = layer.bias
    return new.train(layer.training)


def quantised(model: nn.Module) -> Iterator[tuple[str, Nf4Linear]]:
    """The layers in four bits, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, Nf4Linear):
            yield name, module


def dequantised(model: Any) -> Any:
    """The same model, changed in place, with ordinary float32 layers that hold what the four bits stand for."""
    for name, layer in list(quantised(model)):
        new = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        new.weight = nn.Parameter(layer.dense(torch.float32), requires_grad=False)
        new.bias = layer.bias
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new.train(layer.training))
    return model.float()
