from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.data.split import repeat, split


@given(st.lists(st.integers(0, 30), min_size=2, max_size=80), st.floats(0.01, 0.4), st.floats(0.01, 0.4), st.integers(0, 2**32 - 1))
def test_every_row_is_on_one_side_and_equal_rows_together(contents: list[int], test: float, valid: float, seed: int) -> None:
    hashes = np.array(contents, dtype=np.uint64)
    sides = split(hashes, {"test": test, "valid": valid}, seed)
    assert set(sides) == {"train", "test", "valid"}
    assert set(np.sum([side.astype(int) for side in sides.values()], axis=0).tolist()) == {1}
    for a in sides:
        for b in sides:
            assert a == b or not set(hashes[sides[a]]) & set(hashes[sides[b]])
    assert sides["train"].any()


def test_the_share_is_exact_where_contents_differ() -> None:
    hashes = np.arange(2000, dtype=np.uint64)
    sides = split(hashes, {"test": 0.2, "valid": 0.05}, 0)
    assert [int(sides[n].sum()) for n in ("train", "valid", "test")] == [1500, 100, 400]


def test_the_seed_decides_and_the_order_of_rows_does_not() -> None:
    hashes = np.random.default_rng(1).integers(0, 2**63, 500).astype(np.uint64)
    first = set(hashes[split(hashes, {"test": 0.1}, 7)["test"]])
    assert first == set(hashes[::-1][split(hashes[::-1], {"test": 0.1}, 7)["test"]])
    assert first != set(hashes[split(hashes, {"test": 0.1}, 8)["test"]])
    # The choice is spread evenly over the rows, whatever their hashes.
    places = np.flatnonzero(split(np.arange(10_000, dtype=np.uint64), {"test": 0.5}, 0)["test"])
    assert abs(places.mean() - 5000) < 150


@pytest.mark.parametrize(("weight", "times"), [(1.0, {1}), (2.0, {2}), (0.5, {0, 1}), (2.5, {2, 3})])
def test_a_weight_is_how_often_an_epoch_shows_a_row(weight: float, times: set[int]) -> None:
    rows = np.arange(10, 110)
    shown = repeat(rows, weight, 3)
    assert len(shown) == round(weight * 100)
    assert set(np.bincount(shown, minlength=110)[10:].tolist()) == times
    assert shown.tolist() == repeat(rows, weight, 3).tolist()
    if weight % 1:
        assert shown.tolist() != repeat(rows, weight, 4).tolist()
