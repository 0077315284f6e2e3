"""Kinds of work: one file each, found by name.

A task file says which kinds of row it takes (`ROWS`), what is computed for them (`FORM`), gives the training loss, and says whether a
row has an answer that can be generated and compared (`ANSWERS`).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from tunery.errors import InputError
from tunery.recipe import Named, Options, options_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


class Task(Protocol):
    """What every task file offers.

    Some offer more: `METRICS`, what is measured beside the likelihood, the first to be looked at first; `find_labels(rows, options)`, the
    labels that the training rows have, for options that name none; `variant(options)`, the task that these options make;
    `LOSS_UNIT`, of what the loss is a mean where that is no supervised token; `RATE_FACTOR`, by what the method's default learning rate is multiplied, and why.
    """

    SUMMARY: str
    ROWS: tuple[str, ...]
    ANSWERS: bool
    FORM: Literal["tokens", "sequence", "token", "pairs"]
    """`tokens`: the next token, over packs; `sequence` and `token`: a head with one class a text or a token; `pairs`: two sides a row."""
    Options: type[Options]

    def renderer(self, tokenizer: PreTrainedTokenizerFast, options: Any) -> Any:
        """Rows to sequences: an object as `data.render.Renderer` is, with `batch`, `sequences`, `fingerprint`, `tokenizer`, `stop_ids`."""

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of the losses, in nats, and the sum of the weights; the mean is left to the caller, who knows the whole step."""


def names() -> list[str]:
    """Every task that a recipe may name."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Task:
    """The task of that name. Raises InputError naming the nearest."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
        raise InputError(f"task `{name}` is not known; " + (f"did you mean `{near[0]}`?" if near else f"known: {', '.join(names())}"))
    return cast(Task, importlib.import_module(f"{__name__}.{name}"))


def of(chosen: Named, source: str = "recipe", lines: Mapping[tuple[str, ...], int] | None = None) -> tuple[Task, Any]:
    """The task that a recipe chose, and its options. A task whose options change what is computed gives a variant of itself.

    Raises InputError for an unknown name or option.
    """
    task = get(chosen.name)
    options = options_of(chosen, task.Options, "task", source, lines)
    variant = getattr(task, "variant", None)
    return (variant(options) if variant else task), options
