from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.errors import InputError
from tunery.infer import batches as b
from tunery.infer.batches import batches, until_stop

CONTEXT = 400
lengths = st.lists(st.integers(1, CONTEXT - 1), max_size=80)


@given(lengths, st.integers(1, 500), st.sets(st.integers(0, 79)))
def test_every_prompt_is_in_one_batch_that_it_fits(lengths: list[int], new: int, alone: set[int]) -> None:
    found = batches([[7] * n for n in lengths], new, CONTEXT, frozenset(alone))
    assert sorted(n for batch in found for n in batch.rows) == list(range(len(lengths)))
    for batch in found:
        longest = max(lengths[n] for n in batch.rows)
        assert len(batch.rows) == 1 or len(batch.rows) * (longest + batch.new_tokens) <= b.TOKENS
        assert len(batch.rows) == 1 or not alone & set(batch.rows)
        # Each prompt gets what it would get alone: no answer depends on who else is in the batch.
        assert all(batch.new_tokens == min(new, CONTEXT - lengths[n]) for n in batch.rows)


def test_short_prompts_share_a_batch() -> None:
    assert [batch.rows for batch in batches([[1] * n for n in (5, 9, 7)], 10, CONTEXT)] == [(1, 2, 0)]


@pytest.mark.parametrize(("prompt", "words"), [([], "nothing to read"), ([1] * CONTEXT, "too many")])
def test_a_prompt_that_cannot_be_answered_is_refused_by_its_number(prompt: list[int], words: str) -> None:
    with pytest.raises(InputError, match=f"prompt 2: .*{words}"):
        batches([[1], prompt], 10, CONTEXT)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([5, 6, 2, 7], [5, 6]),
        ([2, 5], []),
        ([5, 6, 7], [5, 6, 7]),
        ([5, 9, 6], [5]),
        ([5, 6, 7, 8, 2], [5, 6, 7, 8]),
        ([5] * 9, [5] * 4),
        ([], []),
    ],
)
def test_an_answer_ends_before_its_first_stop_token(tokens: list[int], expected: list[int]) -> None:
    assert until_stop(tokens, (2, 9), 4) == expected
