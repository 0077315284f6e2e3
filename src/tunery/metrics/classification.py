"""Classification by words: the answer is one of a few labels, written out.

A prediction that is no label is wrong and belongs to no true class. Macro-F1 is the unweighted mean of the F1 of each
true label, with 0 for a label that was neither expected nor predicted: scikit-learn's
`f1_score(labels=labels, average="macro", zero_division=0)`, rebuilt here from sums so that it can be bootstrapped, and
held equal to it by test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunery.errors import InputError
from tunery.metrics.base import MeanMetric, Metric, TextMetric, check_lengths, normalise

if TYPE_CHECKING:
    import numpy as np

OTHER = "(other)"
"""What the confusion table calls a prediction that is no label."""

MOST_LABELS = 1000
"""Macro-F1 over more classes than this is a sign of free text, and its statistics would need N × 3L numbers."""


class Accuracy(MeanMetric):
    """The share of rows whose predicted label is the expected one."""

    name = "accuracy"
    title = "Accuracy"

    def scores(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        import numpy as np

        return np.array([normalise(p) == normalise(r) for p, r in zip(predictions, references, strict=True)], dtype=np.float64)


class MacroF1(TextMetric):
    """Statistics a row and label: (true positive, predicted, expected), L labels side by side, so K = 3L."""

    name = "macro_f1"
    title = "Macro-F1"

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        import numpy as np

        check_lengths(predictions, references)
        labels = _labels(self.labels, references)
        if len(labels) > MOST_LABELS:
            found = f"these rows have {len(labels)} different ones"
            raise InputError(f"macro_f1 is for answers that are few, and {found}; use exact_match or token_f1")
        predicted = _one_hot(predictions, labels)
        expected = _one_hot(references, labels)
        return np.concatenate([predicted * expected, predicted, expected], axis=1)

    def value(self, total: np.ndarray) -> np.ndarray:
        import numpy as np

        hit, predicted, expected = np.split(np.asarray(total, dtype=np.float64), 3, axis=-1)
        below = predicted + expected
        f1 = np.divide(2 * hit, below, out=np.zeros_like(below), where=below != 0)
        return f1.mean(axis=-1)


def confusion(predictions: Sequence[str], references: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Counts of shape (L, L + 1): row = expected label, column = predicted label, the last column `OTHER`.

    Rows whose reference is no label are left out.
    """
    import numpy as np

    check_lengths(predictions, references)
    index = {normalise(label): i for i, label in enumerate(labels)}
    counts = np.zeros((len(index), len(index) + 1), dtype=np.int64)
    for prediction, reference in zip(predictions, references, strict=True):
        expected = index.get(normalise(reference))
        if expected is not None:
            counts[expected, index.get(normalise(prediction), len(index))] += 1
    return counts


def _labels(given: Sequence[str] | None, references: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(map(normalise, given))) if given else sorted({normalise(r) for r in references})


def _one_hot(texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    import numpy as np

    index = {label: i for i, label in enumerate(labels)}
    hot = np.zeros((len(texts), len(labels)))
    for row, text in enumerate(texts):
        column = index.get(normalise(text))
        if column is not None:
            hot[row, column] = 1
    return hot


METRICS: tuple[type[Metric], ...] = (Accuracy, MacroF1)
