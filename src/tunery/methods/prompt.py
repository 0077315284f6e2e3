"""Prompt tuning: learned embeddings of virtual tokens before every row; the model itself stays as it is.

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunery.methods._peft_virtual import NOT_MERGED, Virtual
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMMARY = "learns the embeddings of a few virtual tokens before every row; many such prompts can share one model"
LEARNING_RATE = (
    1e-2,
    "embeddings need larger steps than weights: of 1e-3 to 3e-2 the best on a small Llama, and SmolLM2-135M fell as fast as LoRA at 2e-4",
)
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = False, False, False
REFUSES = (NOT_MERGED,)


class Options(_Options):
    """Prompt tuning's settings in a recipe."""

    virtual_tokens: Annotated[
        int, Field(gt=0, description="how many; beyond 20 the paper found little gain, and each one takes context")
    ] = 20
    init: Annotated[
        Literal["vocabulary", "random"],
        Field(
            description="what they begin as; `vocabulary`: embeddings of random tokens, which the paper found better than random numbers"
        ),
    ] = "vocabulary"
    init_text: Annotated[
        str | None, Field(description="a text to begin with instead, such as the task in words; repeated or cut to fit")
    ] = None


def _config(model: PreTrainedModel, options: Options) -> Any:
    from peft import PromptTuningConfig

    text: dict[str, Any] = {}
    if options.init_text is not None:
        text = {"prompt_tuning_init_text": options.init_text, "tokenizer_name_or_path": model.name_or_path}
    return PromptTuningConfig(
        num_virtual_tokens=options.virtual_tokens,
        prompt_tuning_init="TEXT" if text else {"vocabulary": "SAMPLE_VOCAB", "random": "RANDOM"}[options.init],
        **text,
    )


_method = Virtual("PROMPT_TUNING", _config, {"virtual_tokens": "num_virtual_tokens"})
attach, save, check_start, load = _method.attach, _method.save, _method.check_start, _method.load
virtual_tokens = _method.virtual_tokens
