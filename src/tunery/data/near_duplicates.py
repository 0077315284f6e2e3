"""Rows that are nearly the same, found by MinHash and confirmed by counting.

A row is the set of its five-letter stretches; two rows are near-duplicates when their sets' Jaccard index (shared over
all) is 0.8 or more. MinHash with locality-sensitive hashing proposes pairs (Broder 1997; Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, chapter 3); each is then confirmed on the sets themselves, so none is reported wrongly.

What nearly all rows have in common says nothing about two of them: an instruction that stands before or after every
question is taken off first.
"""

from __future__ import annotations

import itertools
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

THRESHOLD = 0.8
LETTERS = 5
BANDS, BAND_ROWS = 21, 6
"""A pair at Jaccard j is proposed with probability 1 - (1 - j**6)**21: 0.998 at 0.8, above 0.9999 from 0.85 on."""
LARGEST_GROUP = 50
"""Members of one group that are compared with new rows; beyond it a group of n like rows would cost n² comparisons."""
COMMON_SHARE = 0.95
"""A beginning or ending that this share of the rows has is an instruction, not content."""
FEWEST_ROWS = 20
"""Below this, two rows that are alike cannot be told from two rows under one instruction; nothing is taken off."""


@dataclass(frozen=True)
class Pair:
    """Two near-duplicates by their place in the list (`first` < `second`), and their Jaccard index."""

    first: int
    second: int
    jaccard: float


def near_duplicates(rows: Sequence[tuple[str, str]], progress: Callable[[float, float | None, str], None] | None = None) -> list[Pair]:
    """Near-duplicate pairs among rows given as (question, answer); every row that has a near-duplicate is in one of them.

    In a group of like rows not every pair is listed, once the group has `LARGEST_GROUP` members.
    """
    from datasketch import MinHash, MinHashLSH

    sets = [_stretches(text) for text in _without_common(rows)]
    lsh = MinHashLSH(num_perm=BANDS * BAND_ROWS, params=(BANDS, BAND_ROWS))
    blank = MinHash(num_perm=BANDS * BAND_ROWS, seed=1, hashfunc=zlib.crc32)
    pairs: list[Pair] = []
    group = list(range(len(sets)))  # the first member of the group that a row belongs to
    members = [1] * len(sets)
    for n, found in enumerate(sets):
        sketch = blank.copy()
        sketch.update_batch(found)
        best = n
        for other in sorted(lsh.query(sketch)):
            shared = len(found & sets[other])
            jaccard = shared / (len(found) + len(sets[other]) - shared)
            if jaccard >= THRESHOLD:
                pairs.append(Pair(other, n, jaccard))
                best = min(best, group[other])
        if best != n:
            group[n] = best
            members[best] += 1
        if members[best] <= LARGEST_GROUP:
            lsh.insert(n, sketch, check_duplication=False)
        if progress and n % 500 == 499:
            progress(n + 1, len(sets), "near-duplicates")
    if progress:
        progress(len(sets), len(sets), "near-duplicates")
    return pairs


def _stretches(text: str) -> frozenset[bytes]:
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return frozenset(text[k : k + LETTERS].encode("utf-8") for k in range(max(1, len(text) - LETTERS + 1)))


def _without_common(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Question and answer of each row in one text, without the beginning and the ending that nearly all rows have."""
    columns = []
    for k in (0, 1):
        texts = [row[k] for row in rows]
        before = _common_start(texts)
        texts = [t.removeprefix(before) for t in texts]
        after = _common_start([t[::-1] for t in texts])[::-1]
        columns.append([t.removesuffix(after) for t in texts])
    return [f"{question}\n{answer}" for question, answer in zip(*columns, strict=True)]


def _common_start(texts: list[str]) -> str:
    """The longest beginning that at least `COMMON_SHARE` of the texts have."""
    need = -int(-COMMON_SHARE * len(texts) // 1)
    if len(texts) < FEWEST_ROWS:
        return ""
    # Texts with a common beginning are neighbours when sorted.
    texts = sorted(texts)
    windows = ((texts[k], texts[k + need - 1]) for k in range(len(texts) - need + 1))
    return max((_shared_start(*w) for w in windows), key=len)


def _shared_start(a: str, b: str) -> str:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return a[: sum(1 for _ in same)]
