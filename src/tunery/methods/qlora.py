"""QLoRA: LoRA, or DoRA, on a base whose linear layers are frozen in four bits.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs": NormalFloat values with quantised scales, by bitsandbytes, on a
CPU or a GPU. The embedding, the norms and the heads stay as they are. The adapter is an ordinary one; the model that it fits is the
quantised base, which transformers makes of the same weights with
`BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)` in the precision of the run.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunery.errors import MissingExtraError
from tunery.methods import _adapter_file, _low_rank
from tunery.refusal import Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunery.methods._lora_linear import LoraLinear

SUMMARY = "LoRA on a base held in four bits: a quarter of the memory for its weights, and slower steps"
LEARNING_RATE = (2e-4, "the QLoRA paper's for models up to 13B")
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = True, False, True
QUANTISES = True
"""The trained model is the quantised base with the adapter: what loads it elsewhere must quantise from the run's own precision."""

REFUSES = (
    Refusal(
        {"sharding": ("zero3",)},
        "ZeRO-3 cuts weights into pieces and does not know four-bit ones, which mean nothing without their scales",
        "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1249",
        "sharding: zero2",
    ),
    Refusal(
        {"sharding": ("fsdp",)},
        "FSDP2 cuts four-bit weights without their scales, which fails or trains on noise",
        "https://github.com/huggingface/accelerate/issues/3983",
        "sharding: zero2",
    ),
)


class Options(_low_rank.LowRankOptions):
    """QLoRA's settings in a recipe: LoRA's, and how the base is held."""

    dora: Annotated[bool, Field(description="learn each row's length too (DoRA on the quantised base); off, as in the QLoRA paper")] = False
    start: Annotated[
        Literal["default", "loftq"],
        Field(
            description="`loftq` begins at what quantising lost, which helps few-bit bases most; the default begins at no change, as the paper"
        ),
    ] = "default"
    double_quantisation: Annotated[
        bool, Field(description="quantise the scales too: 4.13 bits a value instead of 4.5, at no loss that the QLoRA paper could measure")
    ] = True


def require() -> None:
    """Raise MissingExtraError unless bitsandbytes is installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("method qlora needs bitsandbytes, which is not installed; install with: pip install 'tunery[qlora]'")


def attach(model: PreTrainedModel, options: Options, seed: int, quantise_from: str | None = None) -> PreTrainedModel:
    """Quantise all linear layers but the heads, one after the other, and put an adapter on every target.

    quantise_from: the type (`bfloat16`) to which the weights are rounded first, where the model is loaded in a finer one than it was
    trained in; then the four bits are those of the training.
    """
    require()
    import torch

    from tunery.methods._nf4 import quantise
    from tunery.methods._starts import loftq

    targets = set(_low_rank.target_names(model, options.targets))
    starts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, layer in _low_rank.linear_layers(model).items():
        new = quantise(layer, options.double_quantisation, getattr(torch, quantise_from) if quantise_from else None)
        if options.start == "loftq" and name in targets:
            starts[name] = loftq(layer.weight, new.dense(torch.float32), options.rank, options.scale)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new)

    def begin(name: str, layer: LoraLinear) -> None:
        if name in starts:
            layer.begin_at(*starts.pop(name))

    return _low_rank.adapt(model, options, seed, options.dora, begin)


def dequantised(model: PreTrainedModel, options: Options, quantise_from: str) -> PreTrainedModel:
    """A float32 base as the adapter was trained on it: its linear layers quantised from `quantise_from` and written out again."""
    require()
    import torch

    from tunery.methods import _nf4

    for name, layer in _low_rank.linear_layers(model).items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _nf4.quantise(layer, options.double_quantisation, getattr(torch, quantise_from)))
    return _nf4.dequantised(model)


def save(model: PreTrainedModel, options: Options, folder: Path, base: str) -> None:
    """See `_adapter_file.save`."""
    _adapter_file.save(model, options, folder, base, options.dora)


def check_start(folder: Path, options: Options) -> None:
    """See `_adapter_file.check_start`."""
    _adapter_file.check_start(folder, options, options.dora)


load = _adapter_file.load
for_use = _adapter_file.for_use
parameter_groups = _low_rank.parameter_groups
