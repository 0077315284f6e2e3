"""How sure a value is: bootstrap bounds, and a paired test of before against after.

Both see a metric only through its row statistics, and both are scipy's: `scipy.stats.bootstrap` (percentile method,
Efron & Tibshirani 1993, ch. 13) over the rows, and `scipy.stats.permutation_test` with paired samples, which is approximate
randomisation (Noreen 1989; Dror et al. 2018, doi:10.18653/v1/P18-1128): if training changed nothing, then before and
after of a row could as well be exchanged, so the p-value is the share of random exchanges, the real one included, with a
difference at least as large. It holds for means, ratios and corpus-level scores alike. Few rows: all exchanges, exactly.

What scipy resamples here are the rows' indices; a resample's statistics are then one matrix product of how often each row
was drawn, so the cost does not depend on the length of the texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from tunery.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from tunery.metrics.base import Metric

CONFIDENCE = 0.95
_CELLS = 4_000_000
"""Numbers in memory at once (32 MB): resamples are drawn in batches of this many row indices."""


class Interval(TypedDict):
    """A value with its 95 % bounds."""

    value: float
    low: float
    high: float


class Difference(TypedDict):
    """After minus before, with 95 % bounds, and the two-sided p-value of the paired test."""

    difference: float
    low: float
    high: float
    p_value: float


def interval(metric: Metric, rows: np.ndarray, samples: int = 1000, seed: int = 0) -> Interval:
    """The metric of row statistics (N, K) with 95 % bootstrap bounds; the same seed draws the same rows.

    The bounds always hold the value: a corpus-level score can be biased in resamples, and then the nearer bound is the
    value itself. One row has no spread, so both bounds are the value. Raises InputError without rows.
    """
    rows = _checked(rows)
    value = float(metric.value(rows.sum(axis=0)))
    if len(rows) == 1:
        return {"value": value, "low": value, "high": value}
    low, high = _bounds(lambda drawn: metric.value(_sums(drawn, rows)), len(rows), samples, seed)
    return {"value": value, "low": min(low, value), "high": max(high, value)}


def paired(
    metric: Metric, before_rows: np.ndarray, after_rows: np.ndarray, samples: int = 1000, permutations: int = 2000, seed: int = 0
) -> Difference:
    """After minus before on the same rows (both (N, K)): bounds by drawing the same rows of both, p-value by exchange.

    The least p-value that can come out is 2 / (permutations + 1), or 2 / 2^N of few rows. One row proves nothing: p is 1.
    Raises InputError when the two do not hold the same rows.
    """
    import numpy as np
    from scipy.stats import permutation_test

    before, after = _checked(before_rows), _checked(after_rows)
    if before.shape != after.shape:
        raise InputError(f"before has statistics of shape {before.shape} and after {after.shape}: both must measure the same rows")
    n = len(before)
    difference = float(metric.value(after.sum(axis=0)) - metric.value(before.sum(axis=0)))
    if n == 1:
        return {"difference": difference, "low": difference, "high": difference, "p_value": 1.0}
    low, high = _bounds(lambda drawn: metric.value(_sums(drawn, after)) - metric.value(_sums(drawn, before)), n, samples, seed)

    both = np.concatenate([before, after])

    def exchanged(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
        return metric.value(_sums(np.moveaxis(second, axis, -1), both)) - metric.value(_sums(np.moveaxis(first, axis, -1), both))

    test = permutation_test(
        (np.arange(n), np.arange(n) + n), exchanged, permutation_type="samples", vectorized=True, n_resamples=permutations,
        batch=max(1, _CELLS // (2 * n)), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return {"difference": difference, "low": min(low, difference), "high": max(high, difference), "p_value": float(test.pvalue)}


def _bounds(statistic: Callable[[np.ndarray], np.ndarray], n: int, samples: int, seed: int) -> tuple[float, float]:
    """95 % percentile bounds of a statistic of drawn row indices, shape (B, N) → (B,)."""
    import numpy as np
    from scipy.stats import bootstrap

    result = bootstrap(
        (np.arange(n),), lambda drawn, axis: statistic(np.moveaxis(drawn, axis, -1)), vectorized=True, n_resamples=samples,
        batch=max(1, _CELLS // n), method="percentile", confidence_level=CONFIDENCE, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _sums(drawn: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The summed statistics (..., K) of drawn row indices (..., N)."""
    import numpy as np

    flat = drawn.reshape(-1, drawn.shape[-1])
    offset = np.arange(len(flat))[:, None] * len(rows)
    counts = np.bincount((flat + offset).ravel(), minlength=len(flat) * len(rows)).reshape(len(flat), len(rows))
    return (counts @ rows).reshape(*drawn.shape[:-1], rows.shape[1])


def _checked(rows: np.ndarray) -> np.ndarray:
    import numpy as np

    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise InputError("there are no rows to measure: give statistics of shape (rows, statistics) with at least one row")
    return rows
