"""The rows of a step are divided over the processes: each is taken once, and the tokens are about equal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery import sharding
from tunery.errors import InputError
from tunery.recipe import Named
from tunery.train.parts import part_of

LENGTHS = st.lists(st.integers(1, 1000), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 6), st.randoms())
def test_every_row_is_taken_once_and_no_process_has_much_more(lengths: list[int], world: int, random: np.random.Generator) -> None:
    sizes = np.array(lengths)
    step = np.array(random.sample(range(len(lengths)), len(lengths)))  # type: ignore[attr-defined]
    parts = [part_of(step, sizes, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(parts).tolist()) == sorted(step.tolist())
    tokens = [int(sizes[p].sum()) for p in parts]
    assert max(tokens) - min(tokens) <= max(lengths)  # greedy: the last row given away went to the least loaded one
    for part in parts:  # in the step's order
        places = [step.tolist().index(row) for row in part.tolist()]
        assert places == sorted(places)


def test_one_process_takes_the_step_as_it_is() -> None:
    step = np.array([3, 1, 2])
    assert part_of(step, np.array([9, 1, 5, 7]), 0, 1) is step


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", sharding.MEETING):
        monkeypatch.delenv(name, raising=False)

    def count(gpus: int, stage: str = "ddp", **options: int) -> int:
        chosen = Named(name=stage, options=options)
        return sharding.processes(chosen, sharding.of(chosen)[1], gpus)[0]

    assert (count(0), count(4), count(0, processes=3), count(4, processes=2), count(0, "none")) == (2, 4, 3, 2, 1)
    with pytest.raises(InputError, match=r"sharding\.processes: 3 processes need a GPU each, and there are 2"):
        count(2, processes=3)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "8"), ("MASTER_ADDR", "10.0.0.1")):
        monkeypatch.setenv(name, value)
    assert count(4, processes=2) == 8
    with pytest.raises(InputError, match="`none` trains in one process, and 8 were started; set sharding to ddp"):
        count(0, "none")


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("zero4", {}, "sharding `zero4` is not known; did you mean `zero3`"),
        ("none", {"processes": 2}, "unknown key `sharding.processes`"),
        ("ddp", {"offload": "cpu"}, "unknown key `sharding.offload`"),
        ("zero2", {"proceses": 2}, "unknown key `sharding.proceses`; did you mean `processes`"),
        ("fsdp", {"processes": 0}, "`sharding.processes`"),
    ],
)
def test_what_is_wrong_is_named(stage: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sharding.of(Named(name=stage, options=options))
