"""MiSS: the layer's input is summed in blocks of `rank` and multiplied with one learned matrix, so equal shards of W change alike.

    balance: W + [D D … D]      D: (rank, out) for each shard of the input
    bat:     W + W D + D        D: (out / rank, rank, rank), a change that depends on W
    mini:    as balance, with D: (rank, mini_rank) repeated over the output

Kang & Yin 2024, "Balancing LoRA Performance and Efficiency with Simple Shard Sharing" (formerly Bone).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunery.methods._peft import Injected, Targets, linear_targets
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMMARY = "one learned matrix shared by equal shards of each weight: cheaper than LoRA's two products"
LEARNING_RATE = (
    1e-4,
    "what PEFT's comparison of methods ran MiSS at: each step reaches every shard at once, and SmolLM2-135M fell faster than by LoRA at 2e-4",
)
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = True, False, True


class Options(_Options):
    """MiSS's settings in a recipe."""

    rank: Annotated[
        int,
        Field(gt=0, description="how many inputs make a shard; PEFT's and the paper's default; no layer's input may be smaller"),
    ] = 64
    init: Annotated[
        Literal["balance", "bat", "mini"],
        Field(description="the variant; `balance` is the one that the paper and PEFT advise"),
    ] = "balance"
    mini_rank: Annotated[
        int,
        Field(gt=0, description="for `mini`: how many outputs have a column of their own; must divide every layer's outputs"),
    ] = 1
    dropout: Annotated[float, Field(ge=0, lt=1, description="of the adapter's input; 0 lets rows share what they begin with")] = 0.0
    targets: Targets = "all-linear"


def _config(model: PreTrainedModel, options: Options, seed: int) -> Any:
    from peft import MissConfig

    return MissConfig(
        r=options.rank,
        mini_r=options.mini_rank,
        miss_dropout=options.dropout,
        init_weights=_PEFT_INIT[options.init],
        target_modules=linear_targets(model, options.targets),
    )


_PEFT_INIT: dict[str, Any] = {"balance": True, "bat": "bat", "mini": "mini"}


_method = Injected("MISS", _config, {"rank": "r", "mini_rank": "mini_r"})
attach, save, check_start, load = _method.attach, _method.save, _method.check_start, _method.load
