"""One label a text: spam or not, which of twenty intents.

`as: head` puts a new layer with one score a label on the model, an encoder or a decoder. `as: words` has a decoder write the label's
words as its answer, so what it knows of them counts from the first row on, and what comes out is an ordinary chat model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, create_model, model_validator

from tunery.data.render import Sequence
from tunery.data.rows import Row
from tunery.recipe import Options as _Options
from tunery.tasks import _label_words, _next_token
from tunery.tasks._head import HeadRenderer, check_labels, unknown_label

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

SUMMARY = "choose one label for a text, by a head on an encoder or a decoder, or in the label's own words"
ROWS: tuple[str, ...] = ("label",)
ANSWERS = False
FORM = "sequence"
METRICS: tuple[str, ...] = ("accuracy", "macro_f1")
"""What is measured beside the loss."""
LOSS_UNIT = "label"
loss = _next_token.loss


class _Choices(_Options):
    """`labels`: those of the training rows in sorted order unless named. `prompt`: how `as: words` asks, with {text} and {labels}."""

    labels: Annotated[tuple[str, ...], AfterValidator(check_labels)] = ()
    prompt: str | None = None

    @property
    def by_words(self) -> bool:
        """Whether the label is written out."""
        return bool(getattr(self, "as") == "words")

    @model_validator(mode="after")
    def _prompt_is_used(self) -> _Choices:
        if self.prompt is not None and not self.by_words:
            raise ValueError("prompt is how a model is asked for a label in words, and a head is asked nothing; add `as: words`")
        if self.prompt is not None and "{text}" not in self.prompt:
            raise ValueError("prompt must say where the text goes; write {text} there")
        return self


# `as` is a word of Python's own, so the field is made by name. A head is the default: one pass a text, a probability for each label, no
# answer that is no label, and the same recipe for an encoder and a decoder.
Options: type[_Choices] = create_model("Options", __base__=_Choices, **{"as": (Literal["head", "words"], "head")})  # type: ignore[call-overload]


def variant(options: _Choices) -> Any:
    """The task that these options make: this one, or labels as words."""
    if options.by_words:
        return _label_words
    return sys.modules[__name__]


def find_labels(rows: Iterable[Row], options: _Choices) -> tuple[str, ...]:
    """The labels of the rows, sorted."""
    return tuple(sorted({row.value["label"] for row in rows if row.kind == "label"}))


def renderer(tokenizer: PreTrainedTokenizerFast, options: _Choices) -> TextRenderer:
    """By the tokenizer alone: a head needs no chat template."""
    return TextRenderer(tokenizer, options.labels)


class TextRenderer(HeadRenderer):
    """A text's tokens. The first one carries the number of its label and the row's weight, so that no cut can take them away."""

    kind = "label"

    def text(self, row: Row) -> str:
        return str(row.value["text"])

    def stretches(self, sequence: Sequence) -> list[tuple[str, float]]:
        text = self._backend.decode(sequence.tokens.tolist(), skip_special_tokens=False)
        assert sequence.marks is not None
        return [(text, 0.0), (f" → {self.labels[sequence.marks[0]]}", float(sequence.weights[0]))]

    def _marked(self, row: Row, encoding: Encoding) -> Sequence:
        import numpy as np

        number = self.numbers.get(row.value["label"])
        if number is None:
            raise unknown_label(row, row.value["label"], self.labels)
        weights, marks = np.zeros(len(encoding.ids), np.float32), np.full(len(encoding.ids), -1, np.int32)
        weights[:1], marks[:1] = row.value["weight"], number
        return Sequence(np.array(encoding.ids, dtype=np.int32), weights, marks)
