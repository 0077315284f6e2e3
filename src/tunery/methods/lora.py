"""LoRA: a frozen linear layer plus a product of two thin matrices that is learned.

    y = x Wᵀ + s · (dropout(x) Aᵀ) Bᵀ        A: (rank, in), B: (out, rank), s = alpha / rank, or alpha / √rank with rsLoRA

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; rsLoRA's scale: Kalajdzievski 2023. The file format and the
starting values (A uniform after He et al., B zero) are PEFT's, so that `peft.PeftModel` loads what is saved here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunery.errors import InputError
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SUMMARY = "trains two thin matrices beside each linear layer; the base stays as it is"
LEARNING_RATE = (2e-4, "the rate of the QLoRA paper for models of this size; adapters want about ten times a full tuning's rate")

SAVES, MERGES, TRAINS_BASE, PACKS = "adapter", True, False, True

class Options(_Options):
    """LoRA's settings in a recipe."""

    rank: Annotated[int, Field(gt=0)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    rslora: bool = False

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def attach(model: PreTrainedModel, options: Options, seed: int) -> PreTrainedModel:
    """Put an adapter on every target; only the adapters learn. The starting values depend on `seed` and the order of layers alone."""
    import torch

    from tunery.methods._lora_linear import LoraLinear

    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for name in target_names(model, options.targets):
        parent, _, leaf = name.rpartition(".")
        base = model.get_submodule(name)
        setattr(model.get_submodule(parent), leaf, LoraLinear(base, options.rank, options.scale, options.dropout, generator))
    return model


def target_names(model: PreTrainedModel, targets: Literal["all-linear"] | tuple[str, ...]) -> list[str]:
    """The full names of the layers to adapt. `all-linear`: every linear layer but the output head, as PEFT takes it.

    A target is the last part of a name (`q_proj`) or more of it (`layers.3.mlp.up_proj`). Raises InputError for one that fits no layer.
    """
    import torch

    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    if targets == "all-linear":
        return [n for n, m in linear.items() if m is not head]
    for target in targets:
        if not any(_fits(n, target) for n in linear):
            known = sorted({n.rpartition(".")[2] for n, m in linear.items() if m is not head})
            raise InputError(f"method.targets: no linear layer is called `{target}` in this model; it has {', '.join(known)}")
    return [n for n in linear if any(_fits(n, t) for t in targets)]


def _fits(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def save(model: PreTrainedModel, options: Options, folder: Path, base: str) -> None:
    """`adapter_config.json` and `adapter_model.safetensors`, as PEFT writes them; float32."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    adapted = list(_adapted(model))
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        target_modules=_shortest_names(model, adapted),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors: dict[str, torch.Tensor] = {}
    for name in adapted:
        layer: Any = model.get_submodule(name)
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A.detach().cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B.detach().cpu().contiguous()
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def check_start(folder: Path, options: Options) -> None:
    """An adapter to continue from must have the recipe's rank and scale: the same matrices with another scale are another model."""
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"train.init_from: there is no adapter in {folder} (no readable adapter_config.json); name a run or an adapter folder"
        ) from None
    for key, own, theirs in (
        ("rank", options.rank, config.get("r")),
        ("alpha", options.alpha, config.get("lora_alpha")),
        ("rslora", options.rslora, bool(config.get("use_rslora"))),
    ):
        if own != theirs:
            raise InputError(
                f"train.init_from: the adapter in {folder} has {key} {theirs} and the recipe {own}; set method.{key} to {theirs}"
            )


def load(model: PreTrainedModel, folder: Path) -> None:
    """Read matrices that `save` or PEFT wrote into the adapters of `model`."""
    import torch
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise InputError(f"{folder}: there is no adapter here (adapter_model.safetensors is missing); name a run or an adapter folder")
    tensors = load_file(str(file))
    for name in _adapted(model):
        layer: Any = model.get_submodule(name)
        for part in ("lora_A", "lora_B"):
            value = tensors.pop(f"base_model.model.{name}.{part}.weight", None)
            own = getattr(layer, part)
            if value is None or value.shape != own.shape:
                have = "nothing" if value is None else tuple(value.shape)
                raise InputError(f"{file}: {name}.{part} should be {tuple(own.shape)} and is {have}; rank, targets or base model differ")
            with torch.no_grad():
                own.copy_(value)
    if tensors:
        raise InputError(f"{file}: holds {next(iter(tensors))}, which this recipe does not train; the targets differ")


def _adapted(model: PreTrainedModel) -> list[str]:
    from tunery.methods._lora_linear import LoraLinear

    return [n for n, m in model.named_modules() if isinstance(m, LoraLinear)]


def _shortest_names(model: PreTrainedModel, adapted: list[str]) -> list[str]:
    """The last parts of the names where they mean exactly the adapted layers, else the full names."""
    leaves = sorted({n.rpartition(".")[2] for n in adapted})
    meant = {n for n, _ in model.named_modules() if any(_fits(n, leaf) for leaf in leaves)}
    return leaves if meant == set(adapted) else sorted(adapted)
