"""Packing: rows laid end to end in one sequence, without seeing each other, and what they begin with in common laid down once.

A pack is a prefix tree written depth first. Token j is on the path of token i exactly when it comes before i and its subtree has not
ended: i attends to j if j ≤ i < end[j]. One vector `end` thus describes packing, shared prefixes and causality at once, and the mask
made of it is exact: a row's hidden states and gradients are those that it would have alone.

Positions count along a row's own path. transformers would take their jumps for the borders of rows, which is wrong as soon as a
prefix is shared; so the mask is always our own and handed over whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np


class TokenRow(Protocol):
    """What a pack is made of: `tokens` (T,) and `weights` (T,), where weights[t] is the weight of predicting tokens[t]."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def weights(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Pack:
    """One sequence of T tokens holding R rows with S supervised predictions."""

    tokens: np.ndarray
    """(T,) token ids."""
    positions: np.ndarray
    """(T,) place of each token in its own row."""
    end: np.ndarray
    """(T,) one past the last token that may look at this one."""
    source: np.ndarray
    """(S,) which token's output predicts."""
    targets: np.ndarray
    """(S,) the token id to predict."""
    weights: np.ndarray
    """(S,) float32, the weight of the prediction in the loss."""
    rows: np.ndarray
    """(S,) which of the given rows the prediction belongs to."""
    real_tokens: int
    """Tokens of the rows before sharing."""

    def mask(self) -> np.ndarray:
        """(T, T) bool: may token i (row) look at token j (column)."""
        i = np.arange(len(self.tokens))
        return (i[None, :] <= i[:, None]) & (i[:, None] < self.end[None, :])

    def filled(self, multiple: int) -> Pack:
        """With tokens at the end that see themselves alone and are seen by none, so that the length is a multiple."""
        length = len(self.tokens)
        places = np.arange(length, -(-length // multiple) * multiple)
        nothing = np.zeros_like(places)
        return replace(
            self,
            tokens=np.concatenate([self.tokens, nothing]),
            positions=np.concatenate([self.positions, nothing]),
            end=np.concatenate([self.end, places + 1]),
        )


LONGER = 4
"""How often a beginning that rows share fits into their pack: each pack computes it once, here for at most a fourth of its tokens."""
LONGEST = 4
"""A pack grows for a shared beginning to at most this many times its usual length: what is kept for the gradient grows with it."""


def pack(rows: Iterable[TokenRow], max_tokens: int, share: bool = True) -> Iterator[Pack]:
    """Packs of at most `max_tokens` tokens (a longer row gets one of its own); every row is in exactly one.

    With `share`, the tokens that rows begin with in common are computed once, and a pack of rows that begin with many tokens in common may
    be longer: up to `LONGER` times those, and up to `LONGEST` times `max_tokens`. Rows are numbered in the order given.
    """
    numbered = [(*_needed(r), n) for n, r in enumerate(rows)]
    if share:  # big-endian bytes sort like the token ids, so rows with a common beginning become neighbours
        numbered.sort(key=lambda r: r[0].astype(">u4").tobytes())
    builder = _Builder(share)
    for tokens, learned, targets, weights, real, n in numbered:
        common = builder.common(tokens)
        limit = max(max_tokens, min(LONGER * common, LONGEST * max_tokens))
        if builder.length and builder.length + len(tokens) - common > limit:
            yield builder.finish()
            builder = _Builder(share)
        builder.add(tokens, learned, targets, weights, n)
        builder.real += real
    if builder.length:
        yield builder.finish()


def _needed(row: TokenRow) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """What must be computed of a row: its tokens before the last learned one, which is only a target.

    (tokens, learned, targets, weights, real tokens): learned (S,) are the places whose outputs predict the targets (S,).
    """
    tokens, weights = np.asarray(row.tokens), np.asarray(row.weights)
    predicted = np.flatnonzero(weights[1:]) + 1  # nothing comes before the first token, so nothing can predict it
    needed = tokens[: predicted[-1]] if len(predicted) else tokens[:0]
    return needed, predicted - 1, tokens[predicted], weights[predicted], len(tokens)


class _Builder:
    def __init__(self, share: bool) -> None:
        self.share = share
        self.length = 0
        self.real = 0
        self.path: list[int] = []  # place in the pack of each token of the row added last
        self.last = np.empty(0, dtype=np.int64)
        self.parts: dict[str, list[Any]] = {k: [] for k in ("tokens", "positions", "source", "targets", "weights", "rows")}
        self.end: list[int] = []

    def common(self, tokens: np.ndarray) -> int:
        """How many tokens this row and the row added last begin with in common: those are not computed again."""
        if not self.share:
            return 0
        n = min(len(tokens), len(self.last))
        differing = np.flatnonzero(tokens[:n] != self.last[:n])
        return int(differing[0]) if len(differing) else n

    def add(self, tokens: np.ndarray, learned: np.ndarray, targets: np.ndarray, weights: np.ndarray, row: int) -> None:
        common = self.common(tokens)
        for place in self.path[common:]:
            self.end[place] = self.length
        fresh = len(tokens) - common
        self.path[common:] = range(self.length, self.length + fresh)
        self.end += [0] * fresh
        self.parts["tokens"].append(tokens[common:])
        self.parts["positions"].append(np.arange(common, len(tokens)))
        self.parts["source"].append(np.array(self.path, dtype=np.int64)[learned])
        self.parts["targets"].append(targets)
        self.parts["weights"].append(weights)
        self.parts["rows"].append(np.full(len(learned), row))
        self.length += fresh
        self.last = tokens

    def finish(self) -> Pack:
        for place in self.path:
            self.end[place] = self.length
        whole = {k: np.concatenate(v) for k, v in self.parts.items()}
        weights = whole.pop("weights").astype(np.float32)
        return Pack(
            **{k: v.astype(np.int64) for k, v in whole.items()},
            weights=weights,
            end=np.array(self.end, dtype=np.int64),
            real_tokens=self.real,
        )
