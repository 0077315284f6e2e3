"""What is known of a run's data: the figures of report.json, and the fuller ones that `tunery check` shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tunery.data.tokenised import Tokenised

if TYPE_CHECKING:
    import numpy as np

BINS = 12


@dataclass(frozen=True)
class SplitStats:
    """One side of the data. Rows are counted once however often an epoch shows them; tokens as often as it does.

    rows: source rows that are used; truncated_rows: rows longer than max_length, dropped ones included;
    duplicate_rows: rows whose content stood in an earlier row of this side; longest: tokens, before any cut;
    histogram: (shortest, longest, sequences) a bin, lengths in tokens, sequences as they are trained on.
    """

    rows: int
    sequences: int
    tokens: int
    supervised_tokens: int
    truncated_rows: int
    dropped_rows: int
    duplicate_rows: int
    longest: int
    histogram: list[tuple[int, int, int]]


@dataclass(frozen=True)
class NearDuplicates:
    """rows: for each side, rows with a near-duplicate earlier on their own side; across: for two sides (`train/test`), rows of the
    second with a near-duplicate on the first; examples: (place, place, Jaccard index), the place being `FILE:LINE`; examined: rows
    that were compared, exact duplicates counted once; left_out: rows beyond the number that is compared."""

    rows: dict[str, int]
    across: dict[str, int]
    examples: list[tuple[str, str, float]]
    examined: int
    left_out: int


@dataclass(frozen=True)
class DataStats:
    """The keys of report.json's `data`, for train, and what lies behind them.

    leaked_rows: test rows whose content is also in train or valid. shared: for two sides (`train/test`), rows of the second whose
    content is on the first. sources: SHA-256 by file, or of a hub data set's name and revision.
    """

    train_rows: int
    trained_tokens: int
    supervised_tokens: int
    truncated_rows: int
    dropped_rows: int
    duplicate_rows: int
    leaked_rows: int
    splits: dict[str, SplitStats] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    near_duplicates: NearDuplicates | None = None
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    """For a task with a head: on each side, how many rows (of tagged words: words) have each label."""
    longer_preferred: float | None = None
    """Of preference pairs: the share of training pairs whose preferred answer has more tokens than the other, ties counting half."""

    def report(self) -> dict[str, int]:
        """The `data` object of report.json."""
        keys = ("train_rows", "trained_tokens", "supervised_tokens", "truncated_rows", "dropped_rows", "duplicate_rows", "leaked_rows")
        return {key: getattr(self, key) for key in keys}

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return asdict(self)


FEW = 10
"""Rows (or words) of a label below which hardly anything can be learned of it, or said about it."""


def rare_labels(stats: DataStats) -> dict[str, int]:
    """The labels that are in fewer than `FEW` training rows, the rarest first."""
    counts = stats.labels.get("train", {})
    return {label: count for label, count in sorted(counts.items(), key=lambda item: (item[1], item[0])) if count < FEW}


def split_stats(view: Tokenised, hashes: np.ndarray) -> SplitStats:
    """view: one side; hashes: the content hashes of its distinct rows."""
    import numpy as np

    longest = max((int(view.lengths.max()) if len(view) else 0), max((view.whole_length(int(r)) for r in view.long_rows), default=0))
    return SplitStats(
        rows=len(np.unique(view.rows)),
        sequences=len(view),
        tokens=int(view.lengths.sum()),
        supervised_tokens=int(view.learned.sum()),
        truncated_rows=view.truncated,
        dropped_rows=view.dropped,
        duplicate_rows=len(hashes) - len(np.unique(hashes)),
        longest=longest,
        histogram=histogram(view.lengths),
    )


def histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """At most `BINS` bins of one round width that hold all lengths: (from, to, count), both ends included."""
    import numpy as np

    if not len(lengths):
        return []
    low, high = int(lengths.min()), int(lengths.max())
    width = next(w for k in range(12) for f in (1, 2, 5) if (high // (w := f * 10**k)) - (low // w) < BINS)
    first = low // width
    counts = np.bincount(lengths // width - first)
    return [((first + n) * width, (first + n + 1) * width - 1, int(count)) for n, count in enumerate(counts)]
