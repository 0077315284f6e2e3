"""What a metric is: statistics of each row that add up, and a value computed from their sum.

A mean over rows, a ratio such as the loss per token, and a corpus-level score such as BLEU or macro-F1 all have this
form, so one bootstrap and one paired test (`bootstrap.py`) serve them all: resampling rows is resampling statistics.
A metric knows no model; it sees texts, or the summed log-likelihoods of texts.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from tunery.errors import InputError

if TYPE_CHECKING:
    import numpy as np

Unit = Literal["share", "nats", "bits", "ratio"]


class Metric(ABC):
    """A metric by name. `unit` is `share` for values from 0 to 1, else the value's own unit.

    `labels` is read by classification metrics only: the answers that exist. Without it they take the distinct references.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[Unit] = "share"
    higher_is_better: ClassVar[bool] = True

    def __init__(self, labels: Sequence[str] | None = None) -> None:
        self.labels = None if labels is None else tuple(labels)

    @abstractmethod
    def value(self, total: np.ndarray) -> np.ndarray:
        """The metric of summed statistics: shape (K,) gives a scalar array, (B, K) gives (B,)."""


class TextMetric(Metric):
    """Compares predicted texts with expected ones."""

    @abstractmethod
    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """The statistics of each row, float64 of shape (N, K). Raises InputError when the two lengths differ."""


class MeanMetric(TextMetric):
    """The mean of one score a row. The statistics are (score, 1), so that resampled sums divide to a mean."""

    @abstractmethod
    def scores(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """One score a row, shape (N,)."""

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        import numpy as np

        check_lengths(predictions, references)
        scores = np.asarray(self.scores(predictions, references), dtype=np.float64)
        return np.stack([scores, np.ones_like(scores)], axis=1)

    def value(self, total: np.ndarray) -> np.ndarray:
        return ratio(total)


def ratio(total: np.ndarray) -> np.ndarray:
    """First statistic over the second; 0/0 is 0, as in a resample that drew no weight."""
    import numpy as np

    total = np.asarray(total, dtype=np.float64)
    below = total[..., 1]
    return np.divide(total[..., 0], below, out=np.zeros_like(below), where=below != 0)


def normalise(text: str) -> str:
    """Surrounding white space removed, Unicode NFC: two spellings of one character are the same answer. Case is kept."""
    return unicodedata.normalize("NFC", text).strip()


def check_lengths(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise InputError(f"{len(predictions)} predictions for {len(references)} references: give one prediction a reference")
    if not references:
        raise InputError("there are no rows to measure: give at least one")
