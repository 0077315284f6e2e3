"""Exact match: the share of predictions that are the reference, but for surrounding white space and Unicode form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunery.metrics.base import MeanMetric, Metric, normalise

if TYPE_CHECKING:
    import numpy as np


class ExactMatch(MeanMetric):
    """Strict on purpose: case and punctuation count, since whoever reads the answer by program compares it as it is."""

    name = "exact_match"
    title = "Exact match"

    def scores(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        import numpy as np

        return np.array([normalise(p) == normalise(r) for p, r in zip(predictions, references, strict=True)], dtype=np.float64)


METRICS: tuple[type[Metric], ...] = (ExactMatch,)
