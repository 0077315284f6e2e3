"""Preference rows as tokens: both sides of a pair in one sequence, one after the other, told apart by their marks.

    tokens   prompt, preferred answer, prompt, other answer
    weights  0 on the prompts, the weight of each token on the answers
    marks    0 … 0                     1 … 1

A side is at most `max_length` tokens long; what is beyond that is cut off at the right, as TRL does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from tunery.data import preference
from tunery.data.render import Prompt, Renderer, Sequence
from tunery.data.rows import Row
from tunery.errors import DataError

if TYPE_CHECKING:
    import numpy as np

VERSION = 1
"""Raised whenever the same pair would give other tokens, weights or marks."""


class PairRenderer(Renderer):
    """As `Renderer`, for preference rows: each gives one sequence that holds both sides."""

    def batch(self, rows: Many[Row]) -> list[list[Sequence] | DataError]:
        """See `Renderer.batch`. A side that the template cannot write as one text is its row's problem."""
        pairs = [row for row in rows if row.kind == "preference"]
        halves = [Row(kind, value, row.source, row.line) for row in pairs for kind, value in preference.sides(row.value)]
        sides = iter(super().batch(halves))
        message = "the recipe's task takes preference rows, this is a {} row; change the task or the data"
        return [
            self._pair(row, next(sides), next(sides))
            if row.kind == "preference"
            else DataError(row.source, row.line, message.format(row.kind))
            for row in rows
        ]

    def prompt(self, row: Row) -> Prompt:
        """The prompt that both sides answer; the reference is the preferred answer."""
        kind, value = preference.sides(row.value)[0]
        return super().prompt(replace(row, kind=kind, value=value))

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"pairs {VERSION} {super().fingerprint}".encode()).hexdigest()

    def _pair(self, row: Row, chosen: list[Sequence] | DataError, rejected: list[Sequence] | DataError) -> list[Sequence] | DataError:
        for side in (chosen, rejected):
            if isinstance(side, DataError):
                return side
            if len(side) > 1:
                message = (
                    "the model's chat template rewrites earlier answers, so an answer of several turns has no one text; "
                    "keep one assistant message a side, and put what comes before it into the prompt"
                )
                return DataError(row.source, row.line, message)
        assert not isinstance(chosen, DataError)
        assert not isinstance(rejected, DataError)
        if chosen[0].tokens.tolist() == rejected[0].tokens.tolist():
            message = "the model's chat template writes both answers alike, so neither can be preferred; mend one or remove the row"
            return DataError(row.source, row.line, message)
        return [join(chosen[0], rejected[0])]


def join(chosen: Sequence, rejected: Sequence) -> Sequence:
    """Both sides as one sequence."""
    import numpy as np

    marks = np.repeat(np.array([0, 1], dtype=np.int32), [len(chosen.tokens), len(rejected.tokens)])
    return Sequence(np.concatenate([chosen.tokens, rejected.tokens]), np.concatenate([chosen.weights, rejected.weights]), marks)


def part(pair: Sequence) -> tuple[Sequence, Sequence]:
    """The two sides of a sequence that `join` made, the preferred one first, as sequences without marks."""
    assert pair.marks is not None
    at = second_side(pair.marks)
    return Sequence(pair.tokens[:at], pair.weights[:at]), Sequence(pair.tokens[at:], pair.weights[at:])


def cut(pair: Sequence, max_length: int) -> Sequence:
    """The pair with each side cut to `max_length` tokens."""
    return join(*(side.cut(max_length) for side in part(pair)))


def usable(pair: Sequence) -> bool:
    """Whether something is learned on both sides and they differ: a cut can take that away."""
    chosen, rejected = part(pair)
    return bool(chosen.weights.any() and rejected.weights.any()) and chosen.tokens.tolist() != rejected.tokens.tolist()


def longer_preferred(rows: Iterable[Sequence]) -> float | None:
    """The share of pairs whose preferred answer has more learned tokens, ties counting half; None without pairs.

    Far from a half it is a warning: a model that only looks at the length is then right that often, and may learn just that.
    """
    lengths = [[int((side.weights > 0).sum()) for side in part(row)] for row in rows]
    return sum((a > b) + (a == b) / 2 for a, b in lengths) / len(lengths) if lengths else None


def second_side(marks: np.ndarray) -> int:
    """Where the second side begins; `marks` are those of one pair."""
    import numpy as np

    return int(np.searchsorted(marks, 1))
