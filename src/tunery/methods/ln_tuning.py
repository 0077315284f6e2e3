"""Tuning of the norm layers alone: their scales (and offsets, where they have them) learn, everything else stays.

Zhao et al. 2023, "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning". The learned copies are float32; on a
base in bfloat16 a norm layer is then computed in float32 and its result rounded to the base's type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunery.errors import InputError
from tunery.methods._low_rank import fits
from tunery.methods._peft import Injected, short_names
from tunery.models.heads import head_modules
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SUMMARY = "trains the norm layers' scales alone: the least that can be changed"
LEARNING_RATE = (3e-3, "scales near 1 need larger steps than matrices near 0: SmolLM2-135M fell with it as fast as LoRA at 2e-4")
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = True, False, True


class Options(_Options):
    """The settings of norm tuning in a recipe."""

    targets: Annotated[
        Literal["all-norms"] | tuple[str, ...],
        Field(description="norm layers to train; all of them, as in the paper: they are few numbers"),
    ] = "all-norms"


def attach(model: PreTrainedModel, options: Options, seed: int) -> PreTrainedModel:
    """Put a learned copy beside every chosen norm layer; only the copies, and a task's head, learn."""
    import torch
    from peft.tuners.ln_tuning.layer import LNTuningLayer

    _method.attach(model, options, seed)
    for layer in [m for m in model.modules() if isinstance(m, LNTuningLayer)]:
        before = next(layer.base_layer.parameters()).dtype
        if before != torch.float32:
            layer.register_forward_pre_hook(_widen)
            layer.register_forward_hook(lambda module, inputs, output, to=before: output.to(to))  # type: ignore[misc]
    return model


def _widen(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].float(), *inputs[1:])


def _config(model: PreTrainedModel, options: Options, seed: int) -> Any:
    from peft import LNTuningConfig

    heads = tuple(f"{name}." for name in head_modules(model))
    norms = [n for n, m in model.named_modules() if _is_norm(m) and not (heads and n.startswith(heads))]
    if options.targets != "all-norms":
        for target in options.targets:
            if not any(fits(n, target) for n in norms):
                known = ", ".join(sorted({n.rpartition(".")[2] for n in norms}))
                raise InputError(f"method.targets: no norm layer is called `{target}` in this model; it has {known}")
        norms = [n for n in norms if any(fits(n, t) for t in options.targets)]
    return LNTuningConfig(target_modules=short_names(model, norms))


def _is_norm(module: torch.nn.Module) -> bool:
    return type(module).__name__.endswith("Norm") and any(True for _ in module.parameters(recurse=False))


_method = Injected("LN_TUNING", _config, {})
save, check_start, load = _method.save, _method.check_start, _method.load
