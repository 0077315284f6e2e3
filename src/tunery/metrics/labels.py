"""Are the answers few? Then this is classification, and accuracy and macro-F1 say more than text overlap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tunery.metrics.base import normalise

FEWEST_ROWS = 20
MOST_LABELS = 20
ROWS_PER_LABEL = 5
MOST_STRAYS = 0.05


def find_labels(references: Sequence[str]) -> tuple[str, ...] | None:
    """The labels, sorted, when the references are few and repeat; None when they are free text.

    Few: from 2 to 20 different ones, in 20 rows or more, at 5 rows a label on average. They repeat: at most one row in
    twenty holds an answer that occurs only once (a rare class in a small test set, or a slip), so that twenty different
    sentences are not taken for twenty labels.
    """
    counts = Counter(map(normalise, references))
    rows = sum(counts.values())
    once = sum(1 for n in counts.values() if n == 1)
    few = 2 <= len(counts) <= MOST_LABELS and rows >= FEWEST_ROWS and rows >= ROWS_PER_LABEL * len(counts)
    return tuple(sorted(counts)) if few and once <= MOST_STRAYS * rows and "" not in counts else None
