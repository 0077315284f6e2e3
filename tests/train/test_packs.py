"""Packing: every row is there once, and sees itself and nothing else."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rows import TokenRow, random_rows

from tunery.train.packs import LONGER, LONGEST, Pack, pack

token_rows = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=8).flatmap(
        lambda t: st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(t), max_size=len(t)).map(lambda w: (t, w))
    ),
    max_size=12,
).map(lambda rows: [TokenRow(np.array(t, np.int32), np.array(w, np.float32)) for t, w in rows])


def path_to(packed: Pack, place: int) -> list[int]:
    """The tokens that the token at `place` sees, by the mask."""
    return packed.tokens[packed.mask()[place]].tolist()


@given(token_rows, st.integers(1, 20), st.booleans())
def test_every_prediction_sees_exactly_its_own_row(rows: list[TokenRow], max_tokens: int, share: bool) -> None:
    found = []
    for packed in pack(rows, max_tokens, share):
        for source, target, weight, row in zip(packed.source, packed.targets, packed.weights, packed.rows, strict=True):
            seen = path_to(packed, source)
            assert packed.positions[packed.mask()[source]].tolist() == list(range(len(seen)))
            found.append((int(row), (*seen, int(target)), float(weight)))
    expected = [
        (n, tuple(r.tokens[: t + 1].tolist()), float(r.weights[t]))
        for n, r in enumerate(rows)
        for t in range(1, len(r.tokens))
        if r.weights[t]
    ]
    assert sorted(found) == sorted(expected)


@given(token_rows, st.integers(1, 20), st.booleans())
def test_no_pack_is_longer_than_allowed_unless_one_row_is(rows: list[TokenRow], max_tokens: int, share: bool) -> None:
    packs = list(pack(rows, max_tokens, share))
    learned = [r for r in rows if r.weights[1:].any()]  # a row from which nothing is learned needs no computing
    assert sum(p.real_tokens for p in packs) >= sum(len(r.tokens) for r in learned)
    longest = max((len(r.tokens) for r in rows), default=0)
    shared = min(LONGER * longest, LONGEST * max_tokens) if share else 0
    assert all(len(p.tokens) <= max(max_tokens, longest, shared) for p in packs)


def test_a_pack_grows_for_a_long_beginning_that_its_rows_share() -> None:
    def rows(common: int) -> list[TokenRow]:
        weights = np.r_[np.zeros(common), np.ones(20)].astype(np.float32)
        return [TokenRow(np.r_[np.arange(common), 1000 + 50 * n + np.arange(20)].astype(np.int32), weights) for n in range(30)]

    lengths = {common: [len(p.tokens) for p in pack(rows(common), 100)] for common in (10, 80, 300)}
    assert max(lengths[10]) <= 100  # 10 tokens are not worth more
    assert 100 < max(lengths[80]) <= LONGER * 80
    assert len(lengths[80]) == 3  # 80 + 12 × 19 tokens, and so on: what they share is computed three times, not thirty
    assert 300 < max(lengths[300]) <= LONGEST * 100


def test_a_common_prefix_is_computed_once() -> None:
    rows = [TokenRow(np.array([7, 8, 9, n, 5, 6], np.int32), np.array([0, 0, 0, 0, 1, 0], np.float32)) for n in range(20)]
    (packed,) = pack(rows, 1000)
    assert len(packed.tokens) == 3 + 20  # the last two tokens of a row are a target, and what nothing is learned from
    assert packed.real_tokens == 120
    (unshared,) = pack(rows, 1000, share=False)
    assert len(unshared.tokens) == 80


def test_equal_rows_share_everything_and_count_twice() -> None:
    (row,) = random_rows(1)
    (packed,) = pack([row, row], 1000)
    assert len(packed.tokens) == len(row.tokens) - 1
    assert packed.weights.sum() == 2 * row.weights.sum()


@given(token_rows, st.integers(1, 20), st.sampled_from([1, 4, 32]))
def test_filled_up_nothing_sees_more_and_what_was_added_sees_itself(rows: list[TokenRow], max_tokens: int, multiple: int) -> None:
    for packed in pack(rows, max_tokens):
        filled, length = packed.filled(multiple), len(packed.tokens)
        mask = filled.mask()
        assert len(filled.tokens) % multiple == 0
        assert 0 <= len(filled.tokens) - length < multiple
        assert (mask[:length, :length] == packed.mask()).all()
        assert (mask[length:, length:] == np.eye(len(mask) - length, dtype=bool)).all()
        assert not mask[:length, length:].any()
        assert not mask[length:, :length].any()
        assert filled.source is packed.source
        assert filled.real_tokens == packed.real_tokens
