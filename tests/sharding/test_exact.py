"""Several processes compute what one does: losses, gradients, weights; and each holds its part of the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sharded import METHODS, STAGES, ZERO, Measured, name_of

RELATIVE = 1e-5
PROCESSES = 2


def gradients(measured: Measured, name: str) -> dict[str, torch.Tensor]:
    return load_file(str(measured.folder / f"{name}.gradients.safetensors"))


def learned(measured: Measured, name: str) -> dict[str, torch.Tensor]:
    newest = max((measured.folder / name / "checkpoints").iterdir(), key=lambda p: int(p.name.removeprefix("step-")))
    (file,) = (newest / "learned").glob("*.safetensors")
    return load_file(str(file))


def assert_same_run(several: list[dict[str, Any]], alone: list[dict[str, Any]]) -> None:
    """Losses, gradient norms and validation losses of all steps; what counts rows and tokens is equal."""
    assert len(several) == len(alone) > 1
    for mine, theirs in zip(several, alone, strict=True):
        assert mine == pytest.approx(theirs, rel=RELATIVE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_gradients_are_those_of_one_process(stage: str, method: str, one: Measured, two: Measured) -> None:
    mine, theirs = two.cases[name_of(stage, method)], one.cases[name_of("none", method)]
    assert mine["loss"] == pytest.approx(theirs["loss"], rel=RELATIVE)
    assert_same_run(mine["metrics"], theirs["metrics"])
    ours, whole = gradients(two, name_of(stage, method)), gradients(one, name_of("none", method))
    assert ours.keys() == whole.keys()
    for name, gradient in whole.items():
        size = float(gradient.abs().max())
        assert size > 0, name
        assert float((ours[name] - gradient).abs().max()) <= RELATIVE * size, name


def test_the_rows_are_divided(two: Measured, one: Measured) -> None:
    tokens = two.cases[name_of("ddp", "lora")]["tokens"]
    whole = one.cases[name_of("none", "lora")]["tokens"]
    assert 0.45 * whole < tokens < 0.55 * whole


@pytest.mark.parametrize("stage", ["zero3", "fsdp"])
def test_fused_layers_and_activations_computed_again(stage: str, one: Measured, two: Measured) -> None:
    assert_same_run(two.cases[name_of(stage, "lora", "phi3")]["metrics"], one.cases[name_of("none", "lora", "phi3")]["metrics"])


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stage", ZERO)
def test_offloading_changes_nothing(stage: str, method: str, one: Measured, two: Measured) -> None:
    assert_same_run(two.cases[name_of(stage, method, "offload")]["metrics"], one.cases[name_of("none", method)]["metrics"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_weights_leave_as_one_ordinary_file(stage: str, method: str, one: Measured, two: Measured) -> None:
    mine, theirs = learned(two, name_of(stage, method)), learned(one, name_of("none", method))
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in theirs.items()}
    for name, tensor in theirs.items():  # after four steps of Adam, which turns a sign at rounding into a whole step
        assert float((mine[name] - tensor).norm()) <= 1e-3 * float(tensor.norm()), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_process_holds_what_the_paper_says(stage: str, method: str, two: Measured) -> None:
    """Rajbhandari et al. 2020, section 3 and figure 1, with float32 weights: Ψ weights take 4Ψ bytes, AdamW's state 8Ψ.

    DeepSpeed keeps a copy of the trained weights beside the state it updates, so K = 12 bytes a trained weight instead of 8.
    """
    found = two.cases[name_of(stage, method)]
    weights, trained = found["all_parameters"], found["trained"]
    expected = {
        "ddp": (4 * weights, 8 * trained),
        "zero1": (4 * weights, 12 * trained / PROCESSES),
        "zero2": (4 * weights, 12 * trained / PROCESSES),
        "zero3": (4 * weights / PROCESSES, 12 * trained / PROCESSES),
        "fsdp": (4 * weights / PROCESSES, 8 * trained / PROCESSES),
    }[stage]
    for rank, held in enumerate(found["held"]):
        print(
            f"{stage} {method} process {rank}: weights {held[0]:,} bytes (formula {expected[0]:,.0f}), state {held[1]:,} ({expected[1]:,.0f})"
        )
        assert held == pytest.approx(expected, rel=0.01)  # a step counter for each tensor, and filling up to equal parts


def test_only_the_first_process_writes(two: Measured) -> None:
    run = two.folder / name_of("zero2", "full")
    assert sorted(p.name for p in run.iterdir()) == ["checkpoints", "metrics.jsonl", "plan.json", "recipe.yaml"]
    steps = list((run / "checkpoints").iterdir())
    assert all(not p.name.startswith(".") for p in steps)
    files = {str(p.relative_to(Path(steps[0]))) for p in steps[0].rglob("*") if p.is_file()}
    assert files == {"learned/config.json", "learned/model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"}
