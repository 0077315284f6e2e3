"""Bounds hold the value and cover the truth; the paired test finds planted effects and nothing where there is none."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery.errors import InputError
from tunery.metrics import LikelihoodMetric, TextMetric, get, interval, paired

MEAN = get("accuracy")


def mean_rows(scores: object) -> np.ndarray:
    scores = np.asarray(scores, dtype=float)
    return np.stack([scores, np.ones_like(scores)], axis=1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(0, 1000))
def test_bounds_hold_the_value_and_stay_in_the_range_of_the_scores(scores: list[float], seed: int) -> None:
    found = interval(MEAN, mean_rows(scores), samples=200, seed=seed)
    assert found["value"] == pytest.approx(np.mean(scores))
    assert min(scores) - 1e-9 <= found["low"] <= found["value"] <= found["high"] <= max(scores) + 1e-9


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=40))
def test_bounds_hold_a_corpus_level_value(rows: list[tuple[str, str]]) -> None:
    metric = get("macro_f1", labels=["a", "b", "c"])
    assert isinstance(metric, TextMetric)
    found = interval(metric, metric.rows([p for p, _ in rows], [r for _, r in rows]), samples=200)
    assert found["low"] <= found["value"] <= found["high"]


def test_width_is_that_of_the_normal_approximation() -> None:
    scores = np.repeat([0.0, 1.0], [120, 280])
    found = interval(MEAN, mean_rows(scores))
    half = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert found["low"] == pytest.approx(0.7 - half, abs=0.01)
    assert found["high"] == pytest.approx(0.7 + half, abs=0.01)


def test_bounds_cover_the_truth_in_about_95_of_100_draws() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for seed in range(200):
        found = interval(MEAN, mean_rows(rng.random(100) < 0.6), samples=300, seed=seed)
        covered += found["low"] <= 0.6 <= found["high"]
    assert 180 <= covered <= 199


def test_bounds_are_the_bootstrap_of_rows_drawn_one_by_one() -> None:
    """The product of counts and statistics gives what a plain loop over resamples gives."""
    rng = np.random.default_rng(0)
    metric = get("loss")
    assert isinstance(metric, LikelihoodMetric)
    rows = metric.rows_from(rng.random(50) * 9, rng.integers(1, 30, 50), np.ones(50))
    values = []
    for _ in range(4000):
        drawn = rows[rng.integers(0, 50, 50)]
        values.append(drawn[:, 0].sum() / drawn[:, 1].sum())
    low, high = np.quantile(values, [0.025, 0.975])
    found = interval(metric, rows, samples=4000)
    assert found["low"] == pytest.approx(low, rel=0.03)
    assert found["high"] == pytest.approx(high, rel=0.03)


def test_same_seed_same_bounds_other_seed_others() -> None:
    rows = mean_rows(np.random.default_rng(1).random(60))
    assert interval(MEAN, rows, seed=5) == interval(MEAN, rows, seed=5)
    assert interval(MEAN, rows, seed=5) != interval(MEAN, rows, seed=6)


def test_one_row_and_no_spread() -> None:
    assert interval(MEAN, mean_rows([0.25])) == {"value": 0.25, "low": 0.25, "high": 0.25}
    assert interval(MEAN, mean_rows([1.0] * 30)) == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert paired(MEAN, mean_rows([0.0]), mean_rows([1.0])) == {"difference": 1.0, "low": 1.0, "high": 1.0, "p_value": 1.0}
    same = paired(MEAN, mean_rows([0.5] * 30), mean_rows([0.5] * 30))
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}


def test_few_rows_are_tested_exactly() -> None:
    # 8 rows that all turned from wrong to right: 2 of the 2^8 exchanges are as far apart.
    assert paired(MEAN, mean_rows([0] * 8), mean_rows([1] * 8))["p_value"] == pytest.approx(2 / 2**8)


def test_a_planted_effect_is_found_and_its_bounds_leave_zero_out() -> None:
    rng = np.random.default_rng(2)
    before = rng.random(300) < 0.5
    after = before | (rng.random(300) < 0.3)
    found = paired(MEAN, mean_rows(before), mean_rows(after))
    assert found["p_value"] == pytest.approx(2 / 2001)
    assert 0 < found["low"] < found["difference"] < found["high"]


def test_the_test_is_paired() -> None:
    """Rows differ far more than before and after do: only a paired test can see the difference."""
    rng = np.random.default_rng(4)
    before = rng.random(60)
    after = before + 0.01 + rng.normal(0, 0.01, 60)
    found = paired(MEAN, mean_rows(before), mean_rows(after))
    assert found["p_value"] < 0.01
    assert found["high"] - found["low"] < 0.02


def test_p_values_agree_with_mcnemars_exact_test() -> None:
    from scipy.stats import binomtest

    before, after = np.zeros(200), np.zeros(200)
    before[:12], after[12:37] = 1, 1  # 12 rows lost, 25 gained
    found = paired(MEAN, mean_rows(before), mean_rows(after), permutations=20_000)
    assert found["p_value"] == pytest.approx(binomtest(12, 37).pvalue, abs=0.01)


def test_p_values_of_no_effect_are_uniform() -> None:
    rng = np.random.default_rng(6)
    values = []
    for seed in range(200):
        noise = rng.normal(0, 1, (2, 40))
        values.append(paired(MEAN, mean_rows(noise[0]), mean_rows(noise[1]), samples=10, permutations=200, seed=seed)["p_value"])
    assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.1
    assert 0.4 <= np.mean(values) <= 0.6


@pytest.mark.parametrize("name", ["macro_f1", "chrf", "bleu"])
def test_corpus_level_metrics_are_tested_too(name: str) -> None:
    references = [f"the {w} house stands on the {c} hill" for w in ("red", "blue", "old") for c in ("green", "high", "bare")] * 4
    metric = get(name)
    assert isinstance(metric, TextMetric)
    wrong = ["a wholly other text about nothing at all"] * len(references)
    found = paired(metric, metric.rows(wrong, references), metric.rows(references, references), samples=200, permutations=500)
    assert found["difference"] == pytest.approx(1, abs=0.2)
    assert found["p_value"] == pytest.approx(2 / 501)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_before_and_after_exchanged_mirror_the_result(scores: list[tuple[float, float]]) -> None:
    first, second = mean_rows([a for a, _ in scores]), mean_rows([b for _, b in scores])
    one = paired(MEAN, first, second, samples=100, permutations=100)
    other = paired(MEAN, second, first, samples=100, permutations=100)
    assert one["difference"] == pytest.approx(-other["difference"], abs=1e-12)
    assert one["low"] == pytest.approx(-other["high"], abs=1e-9)
    assert one["low"] <= one["difference"] <= one["high"]
    assert 0 < one["p_value"] <= 1


def test_no_rows_and_unequal_rows_are_refused() -> None:
    with pytest.raises(InputError, match="no rows"):
        interval(MEAN, np.zeros((0, 2)))
    with pytest.raises(InputError, match="the same rows"):
        paired(MEAN, mean_rows([1, 0]), mean_rows([1]))


def test_importing_metrics_loads_no_heavy_library() -> None:
    code = "import sys, tunery.metrics as m; m.names(); m.get('chrf'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "tunery.metrics.translation" in loaded
    assert not {"torch", "numpy", "scipy", "sklearn", "sacrebleu", "rouge_score"} & set(loaded)
