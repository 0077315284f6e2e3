"""Prefix tuning: learned keys and values of virtual tokens in every layer, which all tokens of a row can attend to.

Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation"; without the network that makes them, which the paper used
against unstable training: Liu et al. 2022, "P-Tuning v2".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunery.methods._peft_virtual import NOT_MERGED, Virtual
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMMARY = "learns keys and values of virtual tokens in every layer; stronger than a prompt, and the model stays as it is"
LEARNING_RATE = (5e-3, "PEFT's comparison of methods ran prefixes that begin at zero at it; twice as much was no faster on SmolLM2-135M")
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = False, False, False
REFUSES = (NOT_MERGED,)


class Options(_Options):
    """Prefix tuning's settings in a recipe."""

    virtual_tokens: Annotated[int, Field(gt=0, description="how many; the paper's best lay between 10 (tables) and 200 (summaries)")] = 20
    init: Annotated[
        Literal["zero", "random"],
        Field(description="what keys and values begin as; `zero`, since random ones drown the model's own attention at first"),
    ] = "zero"
    projection: Annotated[
        bool, Field(description="whether a network makes the keys and values while training; PEFT's default is no, and it is many numbers")
    ] = False
    encoder_hidden_size: Annotated[int | None, Field(gt=0, description="that network's width; left out, the width of a layer's keys")] = (
        None
    )


def _config(model: PreTrainedModel, options: Options) -> Any:
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(
        num_virtual_tokens=options.virtual_tokens,
        init_weights="zero" if options.init == "zero" else None,
        prefix_projection=options.projection,
        encoder_hidden_size=options.encoder_hidden_size,  # type: ignore[arg-type]
    )


_method = Virtual("PREFIX_TUNING", _config, {"virtual_tokens": "num_virtual_tokens", "projection": "prefix_projection"})
attach, save, check_start, load = _method.attach, _method.save, _method.check_start, _method.load
virtual_tokens = _method.virtual_tokens
