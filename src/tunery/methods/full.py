"""Full fine-tuning: every weight learns.

The weights are float32 while they are trained, whatever the precision: a step of 1e-5 on a weight of 0.1 is lost in bfloat16. Where the
precision is bf16 the products are computed in it (autocast). Tied weights are one tensor: trained, counted and stored once.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunery.errors import InputError
from tunery.recipe import Options as _Options
from tunery.refusal import Refusal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SUMMARY = "trains every weight of the model: the most memory, and the most room to learn"
LEARNING_RATE = (2e-5, "a tenth of LoRA's, the factor that 'LoRA Without Regret' measured; also the rate of Stanford Alpaca")
SAVES: Literal["adapter", "weights"] = "weights"
MERGES, TRAINS_BASE, PACKS = True, True, True
FILE = "model.safetensors"

REFUSES = (
    Refusal(
        {"export": ("adapter",)},
        "full tuning changes every weight, so there is no adapter to hand out",
        "by construction: what is learned is the whole model",
        "export: [merged]",
    ),
)


class Options(_Options):
    """There is nothing to choose."""


def attach(model: PreTrainedModel, options: Options, seed: int) -> PreTrainedModel:
    """Make every weight float32 and trainable."""
    model.float()
    model.requires_grad_(True)
    return model


def save(model: PreTrainedModel, options: Options, folder: Path, base: str) -> None:
    """`config.json` and `model.safetensors`, one file whatever its size, with transformers' names: a folder that `from_pretrained` loads."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config: Any = copy.deepcopy(model.config)
    config.dtype = torch.float32
    config.architectures = [model.__class__.__name__]
    config.save_pretrained(str(folder))
    tensors = {name: t.detach().cpu().contiguous() for name, t in _tensors(model).items()}
    save_file(tensors, str(folder / FILE), metadata={"format": "pt"})  # with two keys their order, and so the bytes, would vary


def check_start(folder: Path, options: Options) -> None:
    """Full tuning goes on from whole weights, not from an adapter."""
    if (folder / FILE).is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"train.init_from: {folder} is an adapter, and full tuning goes on from whole weights; merge it first (`tunery export RUN --to "
            "merged --out DIR`), name DIR as the `model` and leave init_from out"
        )
    raise InputError(f"train.init_from: there are no weights in {folder} (no {FILE}); name a run of full tuning")


def load(model: PreTrainedModel, folder: Path) -> None:
    """Read all weights back. Raises InputError when one is missing, left over or of another shape."""
    import torch
    from safetensors.torch import load_file

    file = folder / FILE
    if not file.is_file():
        raise InputError(f"{folder}: there are no weights here ({FILE} is missing); name a run of full tuning")
    tensors, own = load_file(str(file)), _tensors(model)
    for name, tensor in own.items():
        value = tensors.pop(name, None)
        if value is None or value.shape != tensor.shape:
            have = "nothing" if value is None else tuple(value.shape)
            raise InputError(f"{file}: {name} should be {tuple(tensor.shape)} and is {have}; it belongs to another base model")
        with torch.no_grad():
            tensor.copy_(value)
    if tensors:
        raise InputError(f"{file}: holds {next(iter(tensors))}, which this model does not have; it belongs to another base model")


def _tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All parameters and stored buffers by transformers' names; tied ones under the first of theirs."""
    kept = model.state_dict(keep_vars=True)
    found: dict[str, torch.Tensor] = dict(model.named_parameters())
    return found | {name: buffer for name, buffer in model.named_buffers() if name in kept}
