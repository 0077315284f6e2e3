"""Rows in padded batches, for models with a head.

Rows of similar length share a batch, each padded on its right to the longest. The mask keeps padding out of every row's hidden states, and
a decoder's own class looks for the last token that is no padding; so what is computed of a row is what it would be alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tunery.data.render import Sequence

TOKENS = 4096
"""Tokens of a batch, padding included: a CPU is at full speed by then, and the attention of 8 rows of 512 is 0.1 GB in float32."""

CHUNK = 1024
"""Rows that are sorted by length together: a step is nearly always smaller, and of a whole validation set not more is in memory."""


@dataclass(frozen=True)
class Batch:
    """B rows padded to L tokens, with S classes to learn."""

    ids: np.ndarray
    """(B, L) int64 token ids."""
    mask: np.ndarray
    """(B, L) int64: 1 for a row's own tokens, 0 for padding."""
    places: np.ndarray
    """(S, 2) int64: row and position of each class."""
    classes: np.ndarray
    """(S,) int64."""
    weights: np.ndarray
    """(S,) float32."""
    rows: np.ndarray
    """(B,) int64: which of the given rows each is."""

    def cut(self, values: np.ndarray, kind: str) -> dict[int, np.ndarray]:
        """What a model gives for the batch, as each given row's own: of (B, classes) a line, of (B, L, classes) its own tokens' part."""
        lengths = self.mask.sum(axis=1)
        return {int(row): values[n] if kind == "sequence" else values[n, : lengths[n]] for n, row in enumerate(self.rows)}


def batches(rows: Iterable[Sequence], pad: int, tokens: int = TOKENS) -> Iterator[Batch]:
    """Batches of at most `tokens` padded tokens (a longer row gets one of its own), shortest rows first; every row is in exactly one.

    tokens = 1: each row alone.
    """
    numbered = iter(enumerate(rows))
    while chunk := list(islice(numbered, CHUNK)):
        chunk.sort(key=lambda item: len(item[1].tokens))
        together: list[tuple[int, Sequence]] = []
        for item in chunk:
            if together and (len(together) + 1) * len(item[1].tokens) > tokens:
                yield _padded(together, pad)
                together = []
            together.append(item)
        yield _padded(together, pad)


def _padded(rows: list[tuple[int, Sequence]], pad: int) -> Batch:
    longest = max(len(row.tokens) for _, row in rows)
    ids, mask = np.full((len(rows), longest), pad, np.int64), np.zeros((len(rows), longest), np.int64)
    places, classes, weights = [], [], []
    for n, (_, row) in enumerate(rows):
        ids[n, : len(row.tokens)], mask[n, : len(row.tokens)] = row.tokens, 1
        assert row.marks is not None
        at = np.flatnonzero(row.marks >= 0)
        places.append(np.column_stack([np.full(len(at), n), at]))
        classes.append(row.marks[at])
        weights.append(row.weights[at])
    return Batch(
        ids,
        mask,
        np.concatenate(places).astype(np.int64),
        np.concatenate(classes).astype(np.int64),
        np.concatenate(weights).astype(np.float32),
        np.array([number for number, _ in rows], dtype=np.int64),
    )
