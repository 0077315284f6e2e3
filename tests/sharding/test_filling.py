"""What fills up the last process's part in ZeRO-3 is whatever the memory was: it must not be read as weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tunery.sharding._deepspeed import DeepSpeed
from tunery.sharding._deepspeed_config import DeepSpeedOptions


def held_of(rank: int, part: list[float], whole: int) -> DeepSpeed:
    engine = DeepSpeed(3, DeepSpeedOptions())
    engine.rank = rank
    engine.parameters = {"weight": SimpleNamespace(ds_tensor=torch.tensor(part), ds_numel=whole)}  # type: ignore[dict-item]
    return engine


@pytest.mark.parametrize("filling", [float("nan"), float("inf"), 0.0])
def test_the_filling_may_be_no_number(filling: float) -> None:
    """Five values on three processes: two, two, and one with a filling."""
    assert held_of(2, [1.0, filling], 5).finite()


def test_a_weight_that_is_no_number_is_seen() -> None:
    assert not held_of(2, [float("nan"), 0.0], 5).finite()
    assert not held_of(0, [1.0, float("nan")], 5).finite()


def test_a_process_that_holds_only_filling() -> None:
    assert held_of(2, [float("nan"), float("nan")], 4).finite()
