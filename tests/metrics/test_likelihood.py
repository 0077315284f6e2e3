from __future__ import annotations

import math

import numpy as np
import pytest

from tunery import metrics
from tunery.errors import InputError
from tunery.metrics import LikelihoodMetric

NLL, TOKENS, BYTES = [6.0, 1.0], [3.0, 4.0], [10, 18]


def get(name: str) -> LikelihoodMetric:
    metric = metrics.get(name)
    assert isinstance(metric, LikelihoodMetric)
    return metric


def value(name: str) -> float:
    metric = get(name)
    return float(metric.value(metric.rows_from(NLL, TOKENS, BYTES).sum(axis=0)))


def test_loss_is_weighted_by_tokens_not_a_mean_of_rows() -> None:
    assert value("loss") == pytest.approx(7 / 7)
    assert value("loss") != pytest.approx((6 / 3 + 1 / 4) / 2)


def test_perplexity_is_e_to_the_loss() -> None:
    assert value("perplexity") == pytest.approx(math.e)


def test_bits_per_byte_of_a_uniform_model_over_bytes_is_eight() -> None:
    metric = get("bits_per_byte")
    lengths = np.array([5, 12, 100])
    rows = metric.rows_from(lengths * math.log(256), np.array([1, 2, 3]), lengths)
    assert float(metric.value(rows.sum(axis=0))) == pytest.approx(8)
    assert value("bits_per_byte") == pytest.approx(7 / math.log(2) / 28)


def test_lower_is_better_and_units() -> None:
    found = {name: (get(name).higher_is_better, get(name).unit) for name in ("loss", "perplexity", "bits_per_byte")}
    assert found == {"loss": (False, "nats"), "perplexity": (False, "ratio"), "bits_per_byte": (False, "bits")}


NO_LIKELIHOOD = [([1.0, math.nan], [1, 1]), ([1.0, math.inf], [1, 1]), ([1.0, 1.0], [0, 0]), ([1.0, 1.0], [3, -1])]


@pytest.mark.parametrize(("nll", "tokens"), NO_LIKELIHOOD)
def test_sums_that_are_no_likelihood_are_refused(nll: list[float], tokens: list[int]) -> None:
    with pytest.raises(InputError, match="supervised tokens"):
        get("loss").rows_from(nll, tokens, [1, 1])
