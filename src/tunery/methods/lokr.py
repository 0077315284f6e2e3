"""LoKr: the change of a weight is the Kronecker product of a small matrix and a low-rank product.

    ΔW = alpha / rank · C ⊗ (A B)

Edalati et al. 2022, "KronA"; Yeh et al. 2023, "Navigating Text-To-Image Customization" (LyCORIS). Where the second factor is small, it
is learned whole instead of as A B, and the rank then only sets the scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunery.methods._peft import Injected, Targets, linear_targets
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMMARY = "the Kronecker product of a small matrix and a low-rank one: few numbers that still reach every weight"
LEARNING_RATE = (3e-3, "PEFT's comparison of methods ran LoKr at it, and SmolLM2-135M fell with it about as fast as LoRA at 2e-4")
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = True, False, True


class Options(_Options):
    """LoKr's settings in a recipe."""

    rank: Annotated[int, Field(gt=0, description="the rank of the larger factor; LoRA's default here")] = 16
    alpha: Annotated[float, Field(gt=0, description="alpha / rank scales ΔW; twice the rank, as for LoRA")] = 32.0
    decompose_both: Annotated[bool, Field(description="whether the small factor, too, is a product of two; it is small as it is")] = False
    decompose_factor: Annotated[
        int,
        Field(
            ge=-1,
            description="the size of the small factor; -1: as near to the square root of the layer's as divides it, the fewest numbers",
        ),
    ] = -1
    rank_dropout: Annotated[float, Field(ge=0, lt=1, description="share of ΔW's rows left out in a pass; off, as in PEFT")] = 0.0
    module_dropout: Annotated[
        float,
        Field(ge=0, lt=1, description="share of the layers whose ΔW is left out in a pass; off, as in PEFT"),
    ] = 0.0
    targets: Targets = "all-linear"


def _config(model: PreTrainedModel, options: Options, seed: int) -> Any:
    from peft import LoKrConfig

    return LoKrConfig(
        r=options.rank,
        alpha=options.alpha,  # type: ignore[arg-type]
        decompose_both=options.decompose_both,
        decompose_factor=options.decompose_factor,
        rank_dropout=options.rank_dropout,
        module_dropout=options.module_dropout,
        target_modules=linear_targets(model, options.targets),
    )


_method = Injected(
    "LOKR",
    _config,
    {"rank": "r", "alpha": "alpha", "decompose_both": "decompose_both", "decompose_factor": "decompose_factor"},
)
attach, save, check_start, load = _method.attach, _method.save, _method.check_start, _method.load
