"""Metrics of pairs: does the model find the preferred answer the better one, and by how much?

They see two scores a pair, the preferred answer's and the other's. `preference_accuracy` takes the mean log-probability of a token, so it
is the same measure for every model, trained or not; the others take the implicit reward of the loss that was trained with.
A tie counts as half, so a model compared with itself has an accuracy of 0.5, which is also that of guessing.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from tunery.errors import InputError
from tunery.metrics.base import Metric, Unit, ratio

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike


class PairMetric(Metric):
    """Statistics a pair: (score, 1). `reads` names what is compared: `mean_log_prob` or `reward`."""

    reads: ClassVar[str]

    @abstractmethod
    def scores(self, chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
        """One score a pair, shape (N,), of what is read for both of its answers."""

    def rows_from(self, chosen: ArrayLike, rejected: ArrayLike) -> np.ndarray:
        """The statistics, float64 of shape (N, 2), of what is read for the preferred and the other answers, each (N,)."""
        import numpy as np

        first, second = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
        if first.shape != second.shape or not len(first) or not (np.isfinite(first).all() and np.isfinite(second).all()):
            raise InputError("these pairs cannot be compared: give one finite number for each of both answers, of at least one pair")
        scores = self.scores(first, second)
        return np.stack([scores, np.ones_like(scores)], axis=1)

    def value(self, total: np.ndarray) -> np.ndarray:
        return ratio(total)


class PreferenceAccuracy(PairMetric):
    """The share of pairs whose preferred answer is the likelier one, by the mean log-probability of a token."""

    name = "preference_accuracy"
    title = "Preference accuracy"
    reads = "mean_log_prob"

    def scores(self, chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
        import numpy as np

        return (np.sign(chosen - rejected) + 1) / 2


class RewardAccuracy(PreferenceAccuracy):
    """The share of pairs whose preferred answer has the larger implicit reward."""

    name = "reward_accuracy"
    title = "Reward accuracy"
    reads = "reward"


class RewardMargin(PairMetric):
    """How much larger the preferred answer's implicit reward is, in the mean."""

    name = "reward_margin"
    title = "Reward margin"
    unit: ClassVar[Unit] = "nats"
    reads = "reward"

    def scores(self, chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
        return chosen - rejected


METRICS: tuple[type[Metric], ...] = (PreferenceAccuracy, RewardAccuracy, RewardMargin)
