"""Token F1 of question answering: how much of the answer's words were found, in any order.

SQuAD's own scoring (Rajpurkar et al. 2016, arXiv:1606.05250, `evaluate-v2.0.py`): lower case, no punctuation, no English
articles, words split at white space, F1 of the two bags of words. When either side is empty after that, the score is 1
if both are, else 0. The official program is a script without a package, so its dozen lines are followed here.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunery.metrics.base import MeanMetric, Metric

if TYPE_CHECKING:
    import numpy as np

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def words(text: str) -> list[str]:
    """The words of an answer as SQuAD compares them. Punctuation goes before articles, as in the official script."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def f1(prediction: str, reference: str) -> float:
    """F1 of the two bags of words, 0 to 1."""
    predicted, expected = words(prediction), words(reference)
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected))


class TokenF1(MeanMetric):
    """The mean over rows of SQuAD's F1."""

    name = "token_f1"
    title = "Token F1"

    def scores(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        import numpy as np

        return np.array([f1(p, r) for p, r in zip(predictions, references, strict=True)])


METRICS: tuple[type[Metric], ...] = (TokenF1,)
