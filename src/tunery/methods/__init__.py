"""Ways to change a model: one file each, found by name.

A method file holds `Options` (what a recipe may set), `LEARNING_RATE` (the default, with its reason), what it supports, and the functions
of the `Method` protocol. `REFUSES`, where it has that, says what it does not go together with. Where a method needs them, it also has

    parameter_groups(model, options, rate, weight_decay)   what the optimiser is given, with rates of their own
    extra_loss(model, options)                             a scalar added to each step's mean loss, or None
    after_step(model, options, step, steps)                called after the optimiser's step, while the gradients are still there
    virtual_tokens(options)                                positions of the context that the method takes for itself
    require()                                              raises MissingExtraError when what the method needs is not installed
    for_use(options)                                       the options with which what was learned is loaded to be used, not trained on
    QUANTISES = True                                       the base is quantised: `attach` and `dequantised` take the type to do it from
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from tunery.errors import InputError
from tunery.recipe import Options

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Method(Protocol):
    """What every method file offers."""

    SUMMARY: str
    LEARNING_RATE: tuple[float, str]
    Options: type[Options]
    SAVES: Literal["adapter", "weights"]
    """`adapter`: PEFT's files; `weights`: `model.safetensors` with all that was trained, in float32."""
    MERGES: bool
    """Whether what was learned can be put into the base's own weights."""
    TRAINS_BASE: bool
    """Whether the base's weights are trained: they are then float32, and computed with under autocast where the precision is bf16."""
    PACKS: bool
    """Whether rows may share a pack; if not, `attach` sets `model.rows_apart` and each row is computed alone."""

    def attach(self, model: PreTrainedModel, options: Any, seed: int) -> PreTrainedModel:
        """Change `model` so that exactly its parameters with `requires_grad` are what is learned; the model to use from here on.

        A task's head (`models.heads.head_modules`) is trained whole, in float32, whatever the method.
        """

    def save(self, model: PreTrainedModel, options: Any, folder: Path, base: str) -> None:
        """Write what was learned into `folder`, in PEFT's file format, naming `base` as its base model."""

    def check_start(self, folder: Path, options: Any) -> None:
        """Raise InputError, before anything is loaded, when training with `options` cannot begin from the adapter in `folder`."""

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Read what `save` wrote back into a model that `attach` changed. Raises InputError when it does not fit."""


def names() -> list[str]:
    """Every method that a recipe may name."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Method:
    """The method of that name. Raises InputError naming the nearest."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
        raise InputError(f"method `{name}` is not known; " + (f"did you mean `{near[0]}`?" if near else f"known: {', '.join(names())}"))
    return cast(Method, importlib.import_module(f"{__name__}.{name}"))


def trainable(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name, in a fixed order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
