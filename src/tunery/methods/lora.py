"""LoRA: a frozen linear layer plus a product of two thin matrices that is learned.

    y = x Wᵀ + s · (dropout(x) Aᵀ) Bᵀ        A: (rank, in), B: (out, rank), s = alpha / rank, or alpha / √rank with rsLoRA

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; rsLoRA's scale: Kalajdzievski 2023. The file format and the
starting values (A uniform after He et al., B zero) are PEFT's, so that `peft.PeftModel` loads what is saved here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from tunery.methods import _adapter_file, _low_rank

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunery.methods._lora_linear import LoraLinear

SUMMARY = "trains two thin matrices beside each linear layer; the base stays as it is"
LEARNING_RATE = (2e-4, "what QLoRA's authors use up to 13B; 'LoRA Without Regret' finds adapters' best rate about ten times full tuning's")
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = True, False, True


class Options(_low_rank.LowRankOptions):
    """LoRA's settings in a recipe."""

    start: Annotated[
        Literal["default", "pissa"],
        Field(
            description="`pissa` begins at the weight's main directions and takes some minutes of decomposing; the default begins at no change"
        ),
    ] = "default"

    @field_validator("start", mode="before")
    @classmethod
    def _needs_quantising(cls, value: Any) -> Any:
        if value == "loftq":
            raise ValueError("`loftq` begins at what quantising lost, and lora quantises nothing: set method.name to qlora")
        return value


def attach(model: PreTrainedModel, options: Options, seed: int) -> PreTrainedModel:
    """Put an adapter on every target; only the adapters learn. The starting values depend on `seed` and the order of layers alone."""

    def begin(name: str, layer: LoraLinear) -> None:
        from tunery.methods._starts import pissa

        a, b = pissa(layer.weight, options.rank, options.scale)
        layer.begin_at(a, b)
        layer.count_from(a, b)

    return _low_rank.adapt(model, options, seed, begin=begin) if options.start == "pissa" else _low_rank.adapt(model, options, seed)


def save(model: PreTrainedModel, options: Options, folder: Path, base: str) -> None:
    """See `_adapter_file.save`."""
    _adapter_file.save(model, options, folder, base)


def check_start(folder: Path, options: Options) -> None:
    """See `_adapter_file.check_start`."""
    _adapter_file.check_start(folder, options)


load = _adapter_file.load
for_use = _adapter_file.for_use
parameter_groups = _low_rank.parameter_groups
