"""Which rows a step takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.train.schedule import learning_rate
from tunery.train.steps import plan_steps


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 100), st.integers(1, 4), st.integers(0, 5))
def test_each_epoch_shows_every_row_once_within_the_token_budget(lengths: list[int], budget: int, epochs: int, seed: int) -> None:
    sizes = np.array(lengths)
    steps = plan_steps(sizes, epochs=epochs, seed=seed, tokens_per_step=budget)
    assert all(len(s) == 1 or sizes[s].sum() <= budget for s in steps)
    rows = np.concatenate(steps)
    for epoch in np.split(rows, epochs):
        assert sorted(epoch.tolist()) == list(range(len(lengths)))


def test_rows_per_step_and_the_last_smaller_step() -> None:
    steps = plan_steps(np.ones(10), epochs=2, seed=0, rows_per_step=4)
    assert [len(s) for s in steps] == [4, 4, 2, 4, 4, 2]


def test_max_steps_repeats_or_cuts() -> None:
    assert len(plan_steps(np.ones(4), epochs=1, seed=0, rows_per_step=2, max_steps=5)) == 5
    assert len(plan_steps(np.ones(40), epochs=1, seed=0, rows_per_step=2, max_steps=5)) == 5


def test_part_of_an_epoch() -> None:
    assert len(np.concatenate(plan_steps(np.ones(10), epochs=1.5, seed=0, rows_per_step=3))) == 15


def test_the_seed_decides_the_order() -> None:
    first, again, other = (np.concatenate(plan_steps(np.ones(50), epochs=1, seed=s, rows_per_step=5)).tolist() for s in (1, 1, 2))
    assert first == again != other


def test_one_size_must_be_given() -> None:
    with pytest.raises(ValueError, match="rows_per_step or tokens_per_step"):
        plan_steps(np.ones(3), epochs=1, seed=0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_to_its_peak_and_ends_low(schedule: str) -> None:
    rates = [learning_rate(n, 100, 1e-3, schedule, 0.1) for n in range(1, 101)]
    assert rates[:10] == pytest.approx([1e-4 * n for n in range(1, 11)])
    assert rates[10] == pytest.approx(1e-3)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == (pytest.approx(1e-3) if schedule == "constant" else pytest.approx(0, abs=2e-5))
    assert rates[10:] == sorted(rates[10:], reverse=True)
