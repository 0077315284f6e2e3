"""Pairs: of two answers to one prompt the model learns to find one likelier, so that it gives answers of that kind.

    task: preference                        # DPO, with the frozen base as its reference
    task: {name: preference, loss: orpo}    # dpo, orpo, kto or simpo

Their formulas are in `_preference_losses.py`, their settings and the reasons for these in `DEFAULTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from tunery.recipe import Options as _Options
from tunery.tasks import _next_token

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from tunery.data.pairs import PairRenderer

FORM = "pairs"
SUMMARY = "learn which of two answers is better (DPO, ORPO, KTO, SimPO)"
ROWS: tuple[str, ...] = ("preference",)
ANSWERS = False
METRICS: tuple[str, ...] = ("preference_accuracy", "reward_accuracy", "reward_margin")
"""What is measured beside the likelihood of the preferred answers."""

RATE_FACTOR = (
    0.25,
    "a quarter of the method's rate: a model that is told what is better drifts faster than one that is shown answers, and published rates "
    "for pairs are 10 to 40 times lower (TRL's scripts: 5e-6 with LoRA), for tens of thousands of pairs; from the few hundred that a small "
    "model is often given, our runs learned nothing at a tenth",
)

DEFAULTS: Mapping[str, Mapping[str, tuple[float, str]]] = {
    "dpo": {
        "beta": (0.1, "the DPO paper's and TRL's; smaller lets the model go further from the reference"),
        "label_smoothing": (0.0, "labels are taken as right; the share of pairs that are labelled wrongly, if known"),
        "nll_weight": (0.0, "plain DPO; 1 adds the preferred answer's loss as RPO does (arXiv:2404.19733)"),
    },
    "orpo": {
        "beta": (0.1, "the weight of the odds ratio, λ in the ORPO paper; TRL's default"),
        "nll_weight": (1.0, "the ORPO paper's equation 6: the answer's own loss is half of what is learned"),
    },
    "kto": {
        "beta": (0.1, "the KTO paper's and TRL's"),
        "desirable_weight": (1.0, "pairs have as many preferred answers as others, so both count alike"),
        "undesirable_weight": (1.0, "pairs have as many preferred answers as others, so both count alike"),
        "nll_weight": (0.0, "plain KTO"),
    },
    "simpo": {
        "beta": (2.0, "the SimPO paper's, 2 to 2.5; rewards are per token, so it is larger than DPO's"),
        "gamma": (1.0, "the target margin, half of beta as the SimPO authors advise to begin with"),
        "label_smoothing": (0.0, "labels are taken as right; the share of pairs that are labelled wrongly, if known"),
        "nll_weight": (0.0, "plain SimPO; TRL's CPO-SimPO has 1"),
    },
}
"""For each loss the settings that it reads: the default, and why it is that."""


class Options(_Options):
    """What a recipe may set. A setting that the loss does not read is refused; one that is left out has its value in `DEFAULTS`."""

    loss: Literal["dpo", "orpo", "kto", "simpo"] = "dpo"
    beta: Annotated[float, Field(gt=0)] | None = None
    gamma: Annotated[float, Field(ge=0)] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    desirable_weight: Annotated[float, Field(ge=0)] | None = None
    undesirable_weight: Annotated[float, Field(ge=0)] | None = None
    nll_weight: Annotated[float, Field(ge=0)] | None = None
    """The weight of the preferred answers' loss, in nats a token of the step's preferred answers."""
    nll_on_prompt: bool = False
    """Whether that loss counts the prompt's tokens too, as ORPO's authors and TRL have it; the paper, and Tunery, count the answer's."""

    @model_validator(mode="before")
    @classmethod
    def _of_this_loss(cls, values: Any) -> Any:
        loss = values.get("loss", "dpo") if isinstance(values, Mapping) else None
        if not isinstance(loss, str) or loss not in DEFAULTS:
            return values
        known = DEFAULTS[loss]
        for name in dict.fromkeys(key for settings in DEFAULTS.values() for key in settings):
            if values.get(name) is not None and name not in known:
                others = " or ".join(other for other, settings in DEFAULTS.items() if name in settings)
                raise ValueError(f"`{name}` is a setting of the loss {others}; `loss: {loss}` reads {', '.join(known)}")
        return {**{name: value for name, (value, _) in known.items()}, **{k: v for k, v in values.items() if v is not None}}

    @model_validator(mode="after")
    def _something_to_count(self) -> Options:
        if self.nll_on_prompt and not self.nll_weight:
            raise ValueError("nll_on_prompt says what nll_weight counts, and that is 0; set nll_weight, or leave nll_on_prompt out")
        if self.loss == "kto" and not self.desirable_weight and not self.undesirable_weight:
            raise ValueError("desirable_weight and undesirable_weight are both 0, so nothing is learned; raise one of them")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a reference model; ORPO and SimPO do not."""
        return self.loss in ("dpo", "kto")


def renderer(tokenizer: PreTrainedTokenizerFast, options: Any) -> PairRenderer:
    """By the tokenizer and its chat template; a row gives one sequence that holds both sides."""
    from tunery.data.pairs import PairRenderer

    return PairRenderer(tokenizer)


loss = _next_token.loss
"""The cross-entropy of an answer's tokens, with which both sides are measured; what is learned is `pair_losses`."""


def pair_losses(options: Options, sums: torch.Tensor, lengths: torch.Tensor, reference: torch.Tensor | None, baseline: Any) -> torch.Tensor:
    """(P,) losses of P pairs; see `_preference_losses.pair_losses`."""
    from tunery.tasks import _preference_losses

    return _preference_losses.pair_losses(options, sums, lengths, reference, baseline)


@dataclass(frozen=True)
class Variant:
    """The task with the options of a recipe."""

    options: Options
    FORM = FORM
    SUMMARY = SUMMARY
    ROWS = ROWS
    ANSWERS = ANSWERS
    METRICS = METRICS
    RATE_FACTOR = RATE_FACTOR
    Options = Options
    renderer = staticmethod(renderer)
    loss = staticmethod(loss)

    def reasons(self, written: Mapping[str, Any]) -> dict[str, str]:
        """Why each setting that the recipe did not write has the value that it has."""
        found = {} if "loss" in written else {"loss": "auto: dpo, the most used of them, and nothing about the data is assumed"}
        known = DEFAULTS[self.options.loss]
        return {**found, **{name: f"auto: {value:g}, {why}" for name, (value, why) in known.items() if written.get(name) is None}}


def variant(options: Options) -> Variant:
    """The task as this recipe has it."""
    return Variant(options)
