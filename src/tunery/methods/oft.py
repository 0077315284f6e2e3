"""OFT: each layer's input is turned by a learned rotation, in blocks; lengths and angles within a block stay as they were.

    y = W (R x) + b,  R block-diagonal and orthogonal, R = (I + Q)(I − Q)⁻¹ with Q skew-symmetric (Cayley)

Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning"; on the input and with the inverse as a Neumann series:
Qiu et al. 2025, "Orthogonal Finetuning Made Scalable" (OFTv2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunery.methods._peft import Injected, Targets, linear_targets
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMMARY = "turns each layer's input by learned rotations: changes directions and keeps lengths"
LEARNING_RATE = (2e-4, "LoRA's rate: on SmolLM2-135M rotations fell faster with it than LoRA, so there is no need for more")
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = True, False, True


class Options(_Options):
    """OFT's settings in a recipe."""

    block_size: Annotated[
        int,
        Field(
            gt=1,
            description="the size of a rotation, PEFT's default; a layer whose input it does not divide gets the nearest size that does",
        ),
    ] = 32
    module_dropout: Annotated[
        float,
        Field(ge=0, lt=1, description="share of the blocks that are not turned in a pass; off, as in PEFT"),
    ] = 0.0
    block_share: Annotated[bool, Field(description="whether all blocks of a layer share one rotation; few numbers as it is")] = False
    neumann: Annotated[
        bool,
        Field(description="whether the inverse is a series of five terms, as OFTv2's authors advise for speed, or solved exactly"),
    ] = True
    targets: Targets = "all-linear"


def _config(model: PreTrainedModel, options: Options, seed: int) -> Any:
    from peft import OFTConfig

    return OFTConfig(
        oft_block_size=options.block_size,
        module_dropout=options.module_dropout,
        block_share=options.block_share,
        use_cayley_neumann=options.neumann,
        target_modules=linear_targets(model, options.targets),
    )


_method = Injected("OFT", _config, {"block_size": "oft_block_size", "block_share": "block_share", "neumann": "use_cayley_neumann"})
attach, save, check_start, load = _method.attach, _method.save, _method.check_start, _method.load
