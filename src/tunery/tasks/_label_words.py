"""`classify` with `as: words`: the label is written out as the answer to a prompt, so everything else is as for `chat`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from collections.abc import Sequence as Many
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunery.data.render import Prompt, Renderer, Sequence
from tunery.data.rows import Row
from tunery.errors import DataError
from tunery.tasks import _next_token
from tunery.tasks._head import unknown_label

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SUMMARY = "write a text's label in words"
ROWS: tuple[str, ...] = ("label",)
ANSWERS = True
FORM = "tokens"
METRICS: tuple[str, ...] = ("accuracy", "macro_f1", "exact_match")
"""What is measured beside the likelihood; exact match is what the model says without a list of labels to choose from."""
loss = _next_token.loss

PROMPT = "Which label fits this text: {labels}? Answer with the label alone.\n\n{text}"


def find_labels(rows: Iterable[Row], options: Any) -> tuple[str, ...]:
    """The labels of the rows, sorted."""
    return tuple(sorted({row.value["label"] for row in rows if row.kind == "label"}))


def renderer(tokenizer: PreTrainedTokenizerFast, options: Any) -> WordsRenderer:
    """By the tokenizer and its chat template; a model without one continues the prompt, with the label on a line of its own."""
    return WordsRenderer(tokenizer, options.labels, options.prompt or PROMPT)


class WordsRenderer(Renderer):
    """Label rows as a prompt and its answer; every other row as it is."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, labels: tuple[str, ...], prompt: str) -> None:
        super().__init__(tokenizer)
        self.labels, self._prompt = labels, prompt

    def batch(self, rows: Many[Row]) -> list[list[Sequence] | DataError]:
        """As `Renderer.batch`; a row's weight is that of each token of its label."""
        found: list[list[Sequence] | DataError] = []
        asked = [self.completion(row) for row in rows]
        for row, sequences in zip(rows, super().batch(asked), strict=True):
            if row.kind == "label" and row.value["label"] not in self.labels:
                found.append(unknown_label(row, row.value["label"], self.labels))
            elif row.kind == "label" and row.value["weight"] != 1 and not isinstance(sequences, DataError):
                found.append([Sequence(s.tokens, s.weights * row.value["weight"]) for s in sequences])
            else:
                found.append(sequences)
        return found

    def prompt(self, row: Row) -> Prompt:
        """As `Renderer.prompt`."""
        return super().prompt(self.completion(row))

    def asked(self, text: str) -> list[int]:
        """The ids that ask for the label of a text."""
        return self.prompt(Row("label", {"text": text, "label": self.labels[0], "weight": 1.0}, "message", 1)).ids

    def completion(self, row: Row) -> Row:
        """A label row as a completion row."""
        if row.kind != "label":
            return row
        # One after the other with the text last: a text that holds a placeholder's name is left as it is.
        asked = self._prompt.replace("{labels}", ", ".join(self.labels)).replace("{text}", row.value["text"])
        end = "" if self.tokenizer.chat_template else "\n"
        return Row("completion", {"prompt": asked + end, "completion": row.value["label"]}, row.source, row.line)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256("\0".join([super().fingerprint, self._prompt, *self.labels]).encode("utf-8")).hexdigest()
