"""What LoRA, DoRA and QLoRA have in common: their settings, the layers that they adapt, and their learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunery.errors import InputError
from tunery.models.heads import head_modules
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tunery.methods._lora_linear import LoraLinear


class LowRankOptions(_Options):
    """The settings of every low-rank adapter. A field's description says what it does and why it has its default."""

    rank: Annotated[int, Field(gt=0, description="columns of B and rows of A; QLoRA's authors saw no difference from 8 to 256 with all layers adapted")] = 16  # fmt: skip
    alpha: Annotated[float, Field(gt=0, description="s = alpha / rank scales what is added; 32 at every rank, as in 'LoRA Without Regret'")] = 32.0  # fmt: skip
    dropout: Annotated[float, Field(ge=0, lt=1, description="of the adapter's input; 0 lets rows share what they begin with; 0.05 may help where little data is seen often")] = 0.0  # fmt: skip
    targets: Annotated[
        Literal["all-linear"] | tuple[str, ...],
        Field(
            description="layers to adapt; all linear layers but the head, which QLoRA and 'LoRA Without Regret' found to matter more than the rank"
        ),
    ] = "all-linear"
    rslora: Annotated[bool, Field(description="s = alpha / √rank, which keeps high ranks stable (Kalajdzievski 2023); at rank 16 the common scale serves")] = False  # fmt: skip
    loraplus_ratio: Annotated[
        float | None,
        Field(
            ge=1,
            description="B learns this many times faster than A (LoRA+, Hayou et al. 2024, who advise 16 with a lower rate); off, since the default rate was found with equal rates",
        ),
    ] = None
    train_tokens: Annotated[
        Literal["added"] | tuple[str, ...],
        Field(
            description="tokens whose own rows of embedding and head are learned too: their names, or `added` for all that were added to the tokenizer; none, since servers that load adapters directly may not know such rows (merge then)"
        ),
    ] = ()

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def adapt(
    model: PreTrainedModel,
    options: LowRankOptions,
    seed: int,
    dora: bool = False,
    begin: Callable[[str, LoraLinear], None] = lambda name, layer: None,
) -> PreTrainedModel:
    """Put an adapter on every target; the adapters, a task's head and the chosen tokens' rows are all that learns.

    The starting values depend on `seed` and the order of layers alone. begin: called with each layer, to start it elsewhere.
    """
    import torch

    from tunery.methods._heads import train_heads
    from tunery.methods._lora_linear import LoraLinear
    from tunery.methods._tokens import train_tokens

    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for name in target_names(model, options.targets):
        parent, _, leaf = name.rpartition(".")
        base = model.get_submodule(name)
        layer = LoraLinear(base, options.rank, options.scale, options.dropout, generator, dora)
        begin(name, layer)
        setattr(model.get_submodule(parent), leaf, layer)
    train_tokens(model, options.train_tokens)
    train_heads(model)
    return model


def linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """Every linear layer but the output head or a task's head, by name: what PEFT calls `all-linear`."""
    import torch

    output, heads = model.get_output_embeddings(), tuple(f"{name}." for name in head_modules(model))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output and not f"{name}.".startswith(heads or ("\0",))
    }


def target_names(model: PreTrainedModel, targets: Literal["all-linear"] | tuple[str, ...]) -> list[str]:
    """The full names of the layers to adapt. `all-linear`: every linear layer but the heads, as PEFT takes it.

    A target is the last part of a name (`q_proj`) or more of it (`layers.3.mlp.up_proj`). Raises InputError for one that fits no layer.
    """
    linear = linear_layers(model)
    if targets == "all-linear":
        return list(linear)
    for target in targets:
        if not any(fits(n, target) for n in linear):
            known = sorted({n.rpartition(".")[2] for n in linear})
            raise InputError(
                f"method.targets: no linear layer is called `{target}` in this model (the head is never adapted); it has {', '.join(known)}"
            )
    return [n for n in linear if any(fits(n, t) for t in targets)]


def fits(name: str, target: str) -> bool:
    """Whether PEFT takes the layer of this name for this target."""
    return name == target or name.endswith("." + target)


def parameter_groups(model: PreTrainedModel, options: LowRankOptions, rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """What the optimiser is given: with LoRA+ two groups, of which B and DoRA's magnitudes learn faster, as PEFT groups them."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    fast = [p for n, p in named if options.loraplus_ratio and n.endswith((".lora_B", ".lora_magnitude_vector"))]
    chosen = {id(p) for p in fast}
    groups = [{"params": [p for _, p in named if id(p) not in chosen], "lr": rate, "weight_decay": weight_decay}]
    if fast and options.loraplus_ratio:
        groups.append({"params": fast, "lr": rate * options.loraplus_ratio, "weight_decay": weight_decay})
    return groups
