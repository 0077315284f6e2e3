"""P-tuning: as prompt tuning, but a small network makes the virtual tokens' embeddings, so that they are learned together.

Liu et al. 2021, "GPT Understands, Too". As in PEFT the virtual tokens stand before the row; the network is not needed for use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunery.methods._peft_virtual import NOT_MERGED, Virtual
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMMARY = "prompt tuning whose virtual tokens are made by a small network while they are learned"
LEARNING_RATE = (1e-3, "of 1e-3 to 3e-2 the best on a small Llama, and one of the rates in PEFT's comparison of methods")
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = False, False, False
REFUSES = (NOT_MERGED,)


class Options(_Options):
    """P-tuning's settings in a recipe."""

    virtual_tokens: Annotated[int, Field(gt=0, description="how many; as for prompt tuning")] = 20
    encoder: Annotated[Literal["mlp", "lstm"], Field(description="the network; `mlp`, which PEFT recommends")] = "mlp"
    encoder_hidden_size: Annotated[int | None, Field(gt=0, description="its width; left out, the model's")] = None
    encoder_num_layers: Annotated[
        int, Field(gt=0, description="layers of the `lstm`; PEFT's default. An `mlp` has always two hidden ones")
    ] = 2
    encoder_dropout: Annotated[float, Field(ge=0, lt=1, description="between the layers of the `lstm`; off, as in PEFT")] = 0.0


def _config(model: PreTrainedModel, options: Options) -> Any:
    from peft import PromptEncoderConfig

    return PromptEncoderConfig(
        num_virtual_tokens=options.virtual_tokens,
        encoder_reparameterization_type=options.encoder.upper(),
        encoder_hidden_size=options.encoder_hidden_size,  # type: ignore[arg-type]
        encoder_num_layers=options.encoder_num_layers,
        encoder_dropout=options.encoder_dropout,
    )


_method = Virtual("P_TUNING", _config, {"virtual_tokens": "num_virtual_tokens"})
attach, save, check_start, load = _method.attach, _method.save, _method.check_start, _method.load
virtual_tokens = _method.virtual_tokens
