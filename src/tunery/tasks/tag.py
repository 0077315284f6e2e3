"""One tag a word: names of people and places in a sentence, parts of speech.

Entities are tagged in BIO: B-X begins an entity of type X, I-X continues it, O is in none (Ramshaw and Marcus 1995, as IOB2). The tag is
learned at the first piece of its word; the word's other pieces count for nothing, as in Devlin et al. 2019 (BERT, section 5.3).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from collections.abc import Sequence as Many
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, model_validator

from tunery.data.render import Sequence
from tunery.data.rows import Row
from tunery.errors import DataError
from tunery.recipe import Options as _Options
from tunery.tasks import _next_token
from tunery.tasks._head import HeadRenderer, check_labels, unknown_label

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

SUMMARY = "choose a tag for each word: entities in BIO, or any tags"
ROWS: tuple[str, ...] = ("tags",)
ANSWERS = False
FORM = "token"
METRICS: tuple[str, ...] = ("entity_f1", "entity_precision", "entity_recall", "tag_accuracy")
"""What is measured beside the loss."""
LOSS_UNIT = "tagged word"
OUTSIDE = "O"
loss = _next_token.loss


class Options(_Options):
    """`labels`: the tags of the training rows in sorted order unless named; of each type that is there both B-X and I-X.

    `scheme`: `bio` checks that I-X follows B-X or I-X; `iob1`, the form of the original CoNLL-2003 files, in which an entity begins with
    I-X unless it follows another of its type, is turned into BIO; `plain` tags are taken as they are, without entities.
    """

    labels: Annotated[tuple[str, ...], AfterValidator(check_labels)] = ()
    scheme: Literal["bio", "iob1", "plain"] = "bio"

    @model_validator(mode="after")
    def _labels_are_of_the_scheme(self) -> Options:
        if self.labels and self.scheme != "plain":
            odd = next((label for label in self.labels if not _in_bio(label)), None)
            if odd is not None or OUTSIDE not in self.labels:
                what = f"`{odd}` is neither O nor B-… or I-…" if odd else "`O` is not among them"
                raise ValueError(f"labels: {what}; name all tags of the entities, or set `scheme: plain`")
        return self


def variant(options: Options) -> Any:
    """The task that these options make: plain tags have no entities to measure."""
    itself = sys.modules[__name__]
    return SimpleNamespace(**{**vars(itself), "METRICS": ("tag_accuracy",)}) if options.scheme == "plain" else itself


def find_labels(rows: Iterable[Row], options: Options) -> tuple[str, ...]:
    """The tags of the rows, sorted. An entity type has both its tags: in few rows none of its entities may have two words."""
    found = {tag for row in rows if row.kind == "tags" for tag in row.value["tags"]}
    if options.scheme == "plain":
        return tuple(sorted(found))
    types = {tag[2:] for tag in found if tag != OUTSIDE and _in_bio(tag)}
    return tuple(sorted([OUTSIDE, *(f"{place}-{name}" for name in types for place in "BI")])) if types else ()


def renderer(tokenizer: PreTrainedTokenizerFast, options: Options) -> TagRenderer:
    """By the tokenizer alone: a head needs no chat template."""
    return TagRenderer(tokenizer, options.labels, options.scheme)


class TagRenderer(HeadRenderer):
    """The words joined by spaces, as they are in any text; the first piece of each carries the number of its tag and the row's weight."""

    kind = "tags"

    def __init__(self, tokenizer: PreTrainedTokenizerFast, labels: tuple[str, ...], scheme: str) -> None:
        super().__init__(tokenizer, labels)
        self.scheme = scheme
        self.lost = OUTSIDE if scheme != "plain" else "-"
        """The prediction for a word of which the model sees nothing."""

    def text(self, row: Row) -> str:
        return " ".join(row.value["tokens"])

    def tags(self, row: Row) -> list[str]:
        """The row's tags, in BIO where they are entities. Raises DataError for an order that BIO does not have, and an unknown tag."""
        tags: list[str] = row.value["tags"]
        if self.scheme != "plain":
            tags = _checked_bio(row, iob1_to_bio(tags) if self.scheme == "iob1" else tags)
        for tag in tags:
            if tag not in self.numbers:
                raise unknown_label(row, tag, self.labels, "tag")
        return tags

    def placed(self, words: Many[str]) -> tuple[list[int], list[int]]:
        """The ids of these words, and for each word the place of its first piece among them; -1 where a word has none of its own."""
        (encoding,) = self.encode([" ".join(words)])
        return list(encoding.ids), _places(words, encoding)

    def stretches(self, sequence: Sequence) -> list[tuple[str, float]]:
        """See `HeadRenderer.stretches`."""
        assert sequence.marks is not None
        decode, tokens = self._backend.decode, sequence.tokens.tolist()
        places = [n for n, mark in enumerate(sequence.marks.tolist()) if mark >= 0]
        end = len(tokens) - self.tail
        found = [(decode(tokens[: places[0]], skip_special_tokens=False), 0.0)] if places else []
        for place, after in pairwise([*places, end]):
            tag = self.labels[sequence.marks[place]]
            shown = decode(tokens[place:after]).strip() + (f"/{tag}" if tag != OUTSIDE else "")
            found += [(" ", 0.0), (shown, float(sequence.weights[place]))]
        return [*found, (" " + decode(tokens[end:], skip_special_tokens=False), 0.0)]

    def _marked(self, row: Row, encoding: Encoding) -> Sequence:
        import numpy as np

        weights, marks = np.zeros(len(encoding.ids), np.float32), np.full(len(encoding.ids), -1, np.int32)
        for place, tag in zip(_places(row.value["tokens"], encoding), self.tags(row), strict=True):
            if place >= 0:
                weights[place], marks[place] = row.value["weight"], self.numbers[tag]
        return Sequence(np.array(encoding.ids, dtype=np.int32), weights, marks)

    def _settings(self) -> list[Any]:
        return [self.scheme]


def iob1_to_bio(tags: Many[str]) -> list[str]:
    """IOB1, where B-X stands only between two entities of one type, as BIO, where it begins every entity."""
    found: list[str] = []
    for before, tag in pairwise([OUTSIDE, *tags]):
        begins = tag.startswith("I-") and before[2:] != tag[2:]
        found.append(f"B-{tag[2:]}" if begins else tag)
    return found


def _checked_bio(row: Row, tags: list[str]) -> list[str]:
    for number, (before, tag) in enumerate(pairwise([OUTSIDE, *tags]), 1):
        word = row.value["tokens"][number - 1][:40]
        if not _in_bio(tag):
            raise DataError(
                row.source,
                row.line,
                f"tag {number} `{tag[:40]}` (of `{word}`) is neither O nor B-… or I-…; write it in BIO, or set `scheme: plain` in the task",
            )
        if tag.startswith("I-") and before[2:] != tag[2:]:
            raise DataError(
                row.source,
                row.line,
                f"tag {number} `{tag[:40]}` (of `{word}`) follows `{before[:40]}`, and in BIO an entity begins with B-; write `B-{tag[2:42]}`, "
                "or set `scheme: iob1` in the task for files in which entities begin with I-",
            )
    return tags


def _in_bio(tag: str) -> bool:
    return tag == OUTSIDE or (tag[:2] in ("B-", "I-") and len(tag) > 2)


def _places(words: Many[str], encoding: Encoding) -> list[int]:
    """Where in the tokens of the words, joined by spaces, the first piece of each is. A piece over the end of a word belongs to that word.

    Pieces are found by their offsets: some tokenizers count the space before a word to its first piece, others write it as a piece.
    """
    special, offsets = encoding.special_tokens_mask, encoding.offsets
    places: list[int] = []
    at, begin = 0, 0
    for word in words:
        end = begin + len(word)
        while at < len(offsets) and (special[at] or offsets[at][1] <= begin):
            at += 1
        inside = at < len(offsets) and offsets[at][0] < end
        places.append(at if inside else -1)
        at += inside
        begin = end + 1
    return places
