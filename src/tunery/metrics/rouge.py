"""ROUGE-L (Lin 2004): the longest common subsequence of words, as an F-measure, mean over rows.

Computed by Google's rouge-score, whose words are runs of a-z and 0-9: it serves English and its neighbours, and gives 0
on other scripts, where chrF is the better choice (`tunery.metrics.choose` looks at that).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunery.metrics.base import MeanMetric, Metric

if TYPE_CHECKING:
    import numpy as np


class RougeL(MeanMetric):
    """No stemming, as in the reference implementation's default."""

    name = "rouge_l"
    title = "ROUGE-L"

    def scores(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        import numpy as np
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"], use_stemmer=False)
        return np.array([scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)], dtype=np.float64)


METRICS: tuple[type[Metric], ...] = (RougeL,)
