"""Metrics of how likely the expected text is to the model: loss, perplexity, bits per byte.

They need no generated text, only sums that the evaluation has: of each row the negative log-likelihood of its
supervised tokens (nats), how many those are (their summed weight), and how many UTF-8 bytes of text they stand for.
Bits per byte does not depend on the tokenizer, so it compares models of different families (Gao et al. 2020,
arXiv:2101.00027, section 3.1).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from tunery.errors import InputError
from tunery.metrics.base import Metric, Unit, ratio

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike


class LikelihoodMetric(Metric):
    """Statistics a row: (nats, what they are divided by)."""

    unit: ClassVar[Unit] = "nats"
    higher_is_better = False

    @abstractmethod
    def rows_from(self, nll: ArrayLike, tokens: ArrayLike, bytes: ArrayLike) -> np.ndarray:
        """The statistics, float64 of shape (N, 2), of `nll` (nats), `tokens` (summed weight) and `bytes`, each of shape (N,)."""


class Loss(LikelihoodMetric):
    """Nats a supervised token, over all rows together (token-weighted, not a mean of rows)."""

    name = "loss"
    title = "Loss"

    def rows_from(self, nll: ArrayLike, tokens: ArrayLike, bytes: ArrayLike) -> np.ndarray:
        return _pairs(nll, tokens, "supervised tokens")

    def value(self, total: np.ndarray) -> np.ndarray:
        return ratio(total)


class Perplexity(Loss):
    """e to the loss: among how many equally likely tokens the model chooses."""

    name = "perplexity"
    title = "Perplexity"
    unit = "ratio"

    def value(self, total: np.ndarray) -> np.ndarray:
        import numpy as np

        return np.exp(ratio(total))


class BitsPerByte(LikelihoodMetric):
    """Bits that the model needs for a byte of the supervised text: nats / ln 2 / bytes."""

    name = "bits_per_byte"
    title = "Bits per byte"
    unit = "bits"

    def rows_from(self, nll: ArrayLike, tokens: ArrayLike, bytes: ArrayLike) -> np.ndarray:
        return _pairs(nll, bytes, "bytes of supervised text")

    def value(self, total: np.ndarray) -> np.ndarray:
        import numpy as np

        return ratio(total) / np.log(2)


def _pairs(above: ArrayLike, below: ArrayLike, what: str) -> np.ndarray:
    import numpy as np

    pairs = np.stack(np.broadcast_arrays(np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)), axis=-1).reshape(-1, 2)
    if not np.isfinite(pairs).all() or (pairs[:, 1] < 0).any() or pairs[:, 1].sum() <= 0:
        raise InputError(f"the likelihood of these rows is not a number per {what}: every sum must be finite and the {what} more than 0")
    return pairs


METRICS: tuple[type[Metric], ...] = (Loss, Perplexity, BitsPerByte)
