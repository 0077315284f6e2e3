"""Rows of random tokens for tests of training, with common beginnings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenRow:
    tokens: np.ndarray
    weights: np.ndarray


class TokenRows(list[TokenRow]):
    """A list of rows with what the loop asks of tokenised data."""

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(r.tokens) for r in self])

    @property
    def supervised(self) -> np.ndarray:
        return np.array([r.weights.sum() for r in self])


def random_rows(count: int, seed: int = 0, vocabulary: int = 440, prefix: int = 6, longest: int = 24) -> TokenRows:
    """Rows of different lengths; most begin with one of two common prefixes, so that packing finds a tree to share."""
    rng = np.random.default_rng(seed)
    first = rng.integers(3, vocabulary, prefix)
    second = np.concatenate([first[: prefix // 2], rng.integers(3, vocabulary, prefix)])
    rows = TokenRows()
    for n in range(count):
        start = (first, second, rng.integers(3, vocabulary, 2))[n % 3]
        rest = rng.integers(3, vocabulary, int(rng.integers(3, longest)))
        tokens = np.concatenate([start, rest]).astype(np.int32)
        weights = np.zeros(len(tokens), np.float32)
        weights[-int(rng.integers(1, len(rest) + 1)) :] = 1.0
        rows.append(TokenRow(tokens, weights))
    return rows
