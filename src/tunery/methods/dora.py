"""DoRA: LoRA learns the direction of each row of a weight, and a magnitude beside it learns the row's length.

    W' = m ∘ (W + sBA) / ‖W + sBA‖        the norm by row, taken as a constant in the gradient; m begins as ‖W‖

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", section 4.3. W + sBA is never made: see `LoraLinear.norm`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunery.methods import _adapter_file, _low_rank

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMMARY = "LoRA with a learned length for each row of each weight; often a little better at low ranks, and slower"
LEARNING_RATE = (2e-4, "LoRA's: DoRA's authors train LLaMA-7B at 2e-4 (their LoRA at 3e-4)")
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = True, False, True


class Options(_low_rank.LowRankOptions):
    """DoRA's settings in a recipe: LoRA's."""


def attach(model: PreTrainedModel, options: Options, seed: int) -> PreTrainedModel:
    """Put an adapter with magnitudes on every target."""
    return _low_rank.adapt(model, options, seed, dora=True)


def save(model: PreTrainedModel, options: Options, folder: Path, base: str) -> None:
    """See `_adapter_file.save`."""
    _adapter_file.save(model, options, folder, base, dora=True)


def check_start(folder: Path, options: Options) -> None:
    """See `_adapter_file.check_start`."""
    _adapter_file.check_start(folder, options, dora=True)


load = _adapter_file.load
parameter_groups = _low_rank.parameter_groups
