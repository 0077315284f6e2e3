"""LoHa: the change of a weight is the elementwise product of two low-rank products, so its rank can reach rank².

    ΔW = alpha / rank · (A₁ B₁) ∘ (A₂ B₂)

Hyeon-Woo et al. 2021, "FedPara"; Yeh et al. 2023, "Navigating Text-To-Image Customization" (LyCORIS).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunery.methods._peft import Injected, Targets, linear_targets
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMMARY = "the elementwise product of two low-rank products: a higher rank for as many numbers as LoRA at twice the rank"
LEARNING_RATE = (2e-3, "a product of four thin matrices grows slowly from zero: on SmolLM2-135M 1e-3 was still slower than LoRA at 2e-4")
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = True, False, True


class Options(_Options):
    """LoHa's settings in a recipe."""

    rank: Annotated[int, Field(gt=0, description="the rank of each of the two products; LoRA's default here, at twice its numbers")] = 16
    alpha: Annotated[float, Field(gt=0, description="alpha / rank scales ΔW; twice the rank, as for LoRA")] = 32.0
    rank_dropout: Annotated[float, Field(ge=0, lt=1, description="share of ΔW's rows left out in a pass; off, as in PEFT")] = 0.0
    module_dropout: Annotated[
        float,
        Field(ge=0, lt=1, description="share of the layers whose ΔW is left out in a pass; off, as in PEFT"),
    ] = 0.0
    targets: Targets = "all-linear"


def _config(model: PreTrainedModel, options: Options, seed: int) -> Any:
    from peft import LoHaConfig

    return LoHaConfig(
        r=options.rank,
        alpha=options.alpha,  # type: ignore[arg-type]
        rank_dropout=options.rank_dropout,
        module_dropout=options.module_dropout,
        target_modules=linear_targets(model, options.targets),
    )


_method = Injected("LOHA", _config, {"rank": "r", "alpha": "alpha"})
attach, save, check_start, load = _method.attach, _method.save, _method.check_start, _method.load
