from __future__ import annotations

import numpy as np
import pytest

from tunery import metrics
from tunery.errors import InputError
from tunery.metrics import PairMetric


def value(name: str, chosen: list[float], rejected: list[float]) -> float:
    metric = metrics.get(name)
    assert isinstance(metric, PairMetric)
    return float(metric.value(metric.rows_from(chosen, rejected).sum(axis=0)))


def test_shares_and_margins_by_hand() -> None:
    chosen, rejected = [1.0, 2.0, 3.0, 4.0], [0.5, 2.5, 3.0, 1.0]
    assert value("preference_accuracy", chosen, rejected) == value("reward_accuracy", chosen, rejected) == 2.5 / 4
    assert value("reward_margin", chosen, rejected) == pytest.approx((0.5 - 0.5 + 0 + 3) / 4)


def test_a_model_compared_with_itself_guesses_and_is_sure_of_it() -> None:
    metric = metrics.get("reward_accuracy")
    assert isinstance(metric, PairMetric)
    same = np.linspace(-3, 0, 20)
    assert metrics.interval(metric, metric.rows_from(same, same)) == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_bounds_and_a_paired_test_are_there() -> None:
    metric = metrics.get("preference_accuracy")
    assert isinstance(metric, PairMetric)
    rng = np.random.default_rng(0)
    before = metric.rows_from(rng.normal(size=80), rng.normal(size=80))
    after = metric.rows_from(rng.normal(1.5, size=80), rng.normal(size=80))
    bounds, change = metrics.interval(metric, after), metrics.paired(metric, before, after)
    assert bounds["low"] < bounds["value"] < bounds["high"]
    assert change["p_value"] < 0.05
    assert change["difference"] == pytest.approx(bounds["value"] - float(metric.value(before.sum(axis=0))))


@pytest.mark.parametrize(("chosen", "rejected"), [([], []), ([1.0], [1.0, 2.0]), ([float("nan")], [0.0]), ([0.0], [float("-inf")])])
def test_what_cannot_be_compared_is_refused(chosen: list[float], rejected: list[float]) -> None:
    with pytest.raises(InputError, match="one finite number for each of both answers"):
        value("reward_margin", chosen, rejected)
