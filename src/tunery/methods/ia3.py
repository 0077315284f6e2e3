"""IA3: one learned factor for each key, each value and each inner value of the feed-forward layers; all factors begin at 1.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", section 3.3. Where queries,
keys and values come from one fused layer, its whole output gets factors, queries too, as PEFT does for such architectures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunery.errors import InputError
from tunery.methods._low_rank import fits, linear_layers, target_names
from tunery.methods._peft import Injected
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMMARY = "learns one factor for each key, value and inner feed-forward value; the smallest adapter of all"
LEARNING_RATE = (5e-3, "PEFT's comparison of methods ran IA3 at it, and SmolLM2-135M fell with it as fast as LoRA at 2e-4")
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = True, False, True

_KEYS_VALUES = (
    "k_proj",
    "v_proj",
    "key",
    "value",
    "k_lin",
    "v_lin",
    "key_proj",
    "value_proj",
    "qkv_proj",
    "query_key_value",
    "Wqkv",
    "c_attn",
)
_FEEDFORWARD = ("down_proj", "fc2", "w2", "wo", "dense_4h_to_h", "fc_out", "lin2")
"""The layer that leads out of the feed-forward block: its input holds the block's inner values."""


class Options(_Options):
    """IA3's settings in a recipe."""

    targets: Annotated[
        Literal["keys-values-feedforward"] | tuple[str, ...],
        Field(description="linear layers that get factors; keys, values and the way out of each feed-forward block, as in the paper"),
    ] = "keys-values-feedforward"
    feedforward: Annotated[
        tuple[str, ...] | None,
        Field(description="targets with factors on the input; left out, those whose names say that they lead out of a feed-forward block"),
    ] = None


def _config(model: PreTrainedModel, options: Options, seed: int) -> Any:
    from peft import IA3Config

    chosen = _names(model, options)
    given = options.feedforward
    inner = [n for n in chosen if (_leads_out(n) if given is None else any(fits(n, f) for f in given))]
    leaves, inner_leaves = {_leaf(n) for n in chosen}, {_leaf(n) for n in inner}
    exact = {n for n, _ in model.named_modules() if _leaf(n) in leaves} == set(chosen)
    if exact and {n for n in chosen if _leaf(n) in inner_leaves} == set(inner):
        return IA3Config(target_modules=sorted(leaves), feedforward_modules=sorted(inner_leaves))
    return IA3Config(target_modules=sorted(chosen), feedforward_modules=sorted(inner))


def _names(model: PreTrainedModel, options: Options) -> list[str]:
    if options.targets != "keys-values-feedforward":
        return target_names(model, options.targets)
    linear = linear_layers(model)
    chosen = [n for n in linear if _leaf(n) in _KEYS_VALUES or _leads_out(n)]
    if not chosen:
        known = ", ".join(sorted({_leaf(n) for n in linear}))
        raise InputError(f"method.targets: which layers make keys and values is not known for this model; name them: it has {known}")
    return chosen


def _leads_out(name: str) -> bool:
    return _leaf(name) in _FEEDFORWARD or (name.endswith("output.dense") and not name.endswith("attention.output.dense"))


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


_method = Injected("IA3", _config, {})
attach, save, check_start, load = _method.attach, _method.save, _method.check_start, _method.load
