"""What the tasks with a head share: texts as the model's tokenizer writes them, with the number of a class at the places that are learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence as Many
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunery.data.render import Sequence
from tunery.data.rows import Row
from tunery.errors import DataError, InputError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

VERSION = 1
"""Raised whenever the same row would give other tokens, weights or marks, so that what was cached is not used again."""


class HeadRenderer:
    """Rows to tokens with the special tokens that the tokenizer itself puts around a text: exactly `tokenizer(text).input_ids`.

    labels: the classes' names in the order of their numbers. A subclass gives the kind of row that it takes, a row's text, and where in
    its tokens the classes are. Raises InputError for a single label, which leaves nothing to choose.
    """

    kind: str
    stop_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: PreTrainedTokenizerFast, labels: tuple[str, ...]) -> None:
        if len(labels) == 1:
            raise InputError(
                f"the training rows have one label only (`{labels[0]}`), so there is nothing to choose; a task needs two or more"
            )
        self.tokenizer, self.labels = tokenizer, labels
        self.numbers = {label: n for n, label in enumerate(labels)}
        self._backend = tokenizer.backend_tokenizer

    def sequences(self, row: Row) -> list[Sequence]:
        """The row as one sequence. Raises DataError when it cannot be used."""
        (found,) = self.batch([row])
        if isinstance(found, DataError):
            raise found
        return found

    def batch(self, rows: Many[Row]) -> list[list[Sequence] | DataError]:
        """`sequences` of many rows at once, tokenised in parallel; a row's own problem stands in its place."""
        usable = [row.kind == self.kind for row in rows]
        encodings = iter(self.encode([self.text(row) for row, ok in zip(rows, usable, strict=True) if ok]))
        found: list[list[Sequence] | DataError] = []
        for row, ok in zip(rows, usable, strict=True):
            try:
                found.append([self._checked(row, next(encodings))] if ok else _raise(self._other_kind(row)))
            except DataError as e:
                found.append(e)
        return found

    def encode(self, texts: list[str]) -> list[Encoding]:
        """The texts' encodings, neither cut nor padded: tokenizer.json may ask for both."""
        self._backend.no_truncation()
        self._backend.no_padding()
        encodings: list[Encoding] = self._backend.encode_batch(texts, add_special_tokens=True)
        return encodings

    @cached_property
    def tail(self) -> int:
        """How many special tokens the tokenizer puts after every text: they stay when a text is cut."""
        (empty,) = self.encode(["a"])
        return next((n for n, special in enumerate(reversed(empty.special_tokens_mask)) if not special), 0)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what a row gives."""
        self.encode(["a"])
        parts = [VERSION, type(self).__name__, self._backend.to_str(), list(self.labels), *self._settings()]
        return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()

    def text(self, row: Row) -> str:
        """What the model reads of a row."""
        raise NotImplementedError

    def stretches(self, sequence: Sequence) -> list[tuple[str, float]]:
        """A row as a reader is shown it: stretches of text, each with the weight of learning it."""
        raise NotImplementedError

    def _checked(self, row: Row, encoding: Encoding) -> Sequence:
        found = self._marked(row, encoding)
        if not found.weights.any():
            raise DataError(row.source, row.line, "the tokenizer makes nothing of this text, so there is nothing to learn; remove the row")
        return found

    def _marked(self, row: Row, encoding: Encoding) -> Sequence:
        raise NotImplementedError

    def _settings(self) -> list[Any]:
        return []

    def _other_kind(self, row: Row) -> DataError:
        needs = {"label": "`text` and `label`", "tags": "`tokens` and `tags`"}[self.kind]
        return DataError(
            row.source,
            row.line,
            f"the recipe's task takes {self.kind} rows ({needs}), this is a {row.kind} row; change the task or the data",
        )


def unknown_label(row: Row, label: str, labels: Many[str], what: str = "label") -> DataError:
    """The error of a label that the task does not have, with the nearest one that it has."""
    import difflib

    near = difflib.get_close_matches(label, labels, n=1, cutoff=0.5)
    mend = f"did you mean `{near[0]}`?" if near else f"the {what}s are {', '.join(labels[:20])}{' …' if len(labels) > 20 else ''}"
    return DataError(row.source, row.line, f"the {what} `{label[:80]}` is not one of the training rows' or of task.labels; {mend}")


def check_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels that a recipe names. Raises ValueError for an empty one, and for one that is there twice."""
    twice = next((label for n, label in enumerate(labels) if label in labels[:n]), None)
    if twice is not None:
        raise ValueError(f"the label `{twice}` is there twice; keep one")
    if any(label != label.strip() or not label for label in labels):
        raise ValueError("a label is empty, or begins or ends with white space; write it without")
    if len(labels) == 1:
        raise ValueError("a task needs two labels or more; name the others, or leave the key out to have them found in the rows")
    return labels


def _raise(error: DataError) -> Any:
    raise error
