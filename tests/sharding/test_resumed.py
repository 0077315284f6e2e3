"""A checkpoint of any number of processes, in any sharding, is one that any other can go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sharded
from safetensors.torch import load_file
from sharded import STAGES, ZERO, Measured, name_of


def last_checkpoint(measured: Measured, name: str) -> dict[str, bytes]:
    """The files of the last checkpoint; but for the time that the steps took."""
    newest = max((measured.folder / name / "checkpoints").iterdir(), key=lambda p: int(p.name.removeprefix("step-")))
    return {str(p.relative_to(newest)): p.read_bytes() for p in newest.rglob("*.safetensors")}


@pytest.mark.parametrize("stage", STAGES)
def test_on_the_same_number_bit_for_bit(stage: str, two: Measured) -> None:
    """With dropout, whose random state each process has of its own."""
    whole, resumed = name_of(stage, "lora", "dropout"), name_of(stage, "lora", "dropout-resumed")
    assert two.cases[resumed]["metrics"] == two.cases[whole]["metrics"]
    assert len(two.cases[whole]["metrics"]) == 8
    files = last_checkpoint(two, whole)
    assert sorted(files) == ["learned/adapter_model.safetensors", "optimizer.safetensors", "random.safetensors"]
    assert last_checkpoint(two, resumed) == files


@pytest.mark.parametrize("stage", ZERO)
def test_offloaded_bit_for_bit(stage: str, two: Measured) -> None:
    whole, resumed = name_of(stage, "full", "offload"), name_of(stage, "full", "offload-resumed")
    assert two.cases[resumed]["metrics"] == two.cases[whole]["metrics"]
    assert last_checkpoint(two, resumed) == last_checkpoint(two, whole)


def test_each_process_has_its_own_random_state(two: Measured) -> None:
    newest = two.folder / name_of("zero2", "lora", "dropout") / "checkpoints" / "step-8"
    states = load_file(str(newest / "random.safetensors"))
    assert sorted(states) == ["cpu", "cpu-1"]
    assert not states["cpu"].equal(states["cpu-1"])


def assert_goes_on(resumed: list[dict[str, Any]], whole: list[dict[str, Any]]) -> None:
    assert len(resumed) == len(whole) == 4
    for mine, theirs in zip(resumed, whole, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_on_three_after_two(stage: str, two: Measured, three: Measured) -> None:
    assert_goes_on(three.cases[name_of(stage, "full", "after-two")]["metrics"], two.cases[name_of(stage, "full")]["metrics"])


@pytest.mark.parametrize("stage", STAGES)
def test_on_one_after_two(stage: str, two: Measured, tiny_llama: Path, tmp_path: Path) -> None:
    again = {"name": "again", "stage": "none", "method": "full", "model": str(tiny_llama), "gradients": False}
    found = sharded.measure({**again, "after": str(two.folder / name_of(stage, "full"))}, tmp_path)
    assert_goes_on(found["metrics"], two.cases[name_of(stage, "full")]["metrics"])


@pytest.mark.parametrize(("stage", "other"), [("zero3", "none"), ("fsdp", "zero2"), ("zero1", "fsdp")])
def test_in_another_sharding(stage: str, other: str, one: Measured, two: Measured) -> None:
    before = (one if other == "none" else two).cases[name_of(other, "full")]
    assert_goes_on(two.cases[name_of(stage, "full", f"after-{other}")]["metrics"], before["metrics"])


def test_the_layout_is_the_same(one: Measured, two: Measured) -> None:
    def shapes(measured: Measured, stage: str) -> dict[str, Any]:
        newest = measured.folder / name_of(stage, "full") / "checkpoints" / "step-4"
        return {n: (t.shape, t.dtype) for n, t in load_file(str(newest / "optimizer.safetensors")).items()}

    alone = shapes(one, "none")
    assert len(alone) > 30
    for stage in STAGES:
        assert shapes(two, stage) == alone
