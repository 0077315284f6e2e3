from __future__ import annotations

from typing import Any

import pytest

from tunery.errors import InputError
from tunery.infer.sampling import Sampling


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        Sampling(**wrong)


def test_temperature_zero_is_greedy() -> None:
    assert Sampling().greedy
    assert not Sampling(temperature=0.01).greedy
