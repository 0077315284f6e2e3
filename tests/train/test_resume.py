"""Stopped and resumed equals never stopped, bit for bit."""

import multiprocessing
import random
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from train_tiny import train_tiny

from tunery.run import Run

PERIOD = 0.01


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start with the libraries imported, so that a kill costs no seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "peft", "train_tiny", "rows", "tunery.train.loop", "tunery.methods.lora"])
    return context


def start(processes: ForkServerContext, *args: Any, **changes: Any) -> Any:
    process = processes.Process(target=train_tiny, args=args, kwargs=changes)
    process.start()
    return process


def finish(process: Any) -> None:
    process.join(120)
    assert process.exitcode == 0


def outcome(folder: Path) -> tuple[list[dict[str, Any]], bytes]:
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in Run(folder).metrics()]
    return lines, (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(processes: ForkServerContext, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(start(processes, tiny_llama, folder))
    return outcome(folder)


def test_ten_kills_at_random_points_change_nothing(
    processes: ForkServerContext, tiny_llama: Path, tmp_path: Path, uninterrupted: tuple[Any, bytes]
) -> None:
    """With dropout, and with epochs of five steps, so that kills fall on both sides of their ends."""
    folder = tmp_path / "run"
    rng = random.Random(0)
    killed_at: list[int] = []
    for kill in range(10):
        process = start(processes, tiny_llama, folder)
        # Two steps beyond what the last kill left, so that the run gets on; one kill waits for an epoch's last step.
        reached = len(Run(folder).metrics()) if folder.exists() else 0
        wanted = 5 if kill == 1 else min(19, reached + rng.randint(0, 3))
        while process.is_alive() and len(Run(folder).metrics()) < max(1, wanted):
            time.sleep(PERIOD)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.join()
        killed_at.append(len(Run(folder).metrics()))
    finish(start(processes, tiny_llama, folder))
    assert outcome(folder) == uninterrupted
    assert len(uninterrupted[0]) == 20
    assert len(set(killed_at)) > 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_saves_the_step_and_resumes(
    processes: ForkServerContext, tiny_llama: Path, tmp_path: Path, uninterrupted: tuple[Any, bytes], number: int
) -> None:
    import os

    folder = tmp_path / "run"
    process = start(processes, tiny_llama, folder, checkpoint_every=1000)
    while len(Run(folder).metrics()) < 4:
        time.sleep(PERIOD)
    os.kill(process.pid, number)
    process.join(60)
    stopped_after = len(Run(folder).metrics())
    if stopped_after < 20:  # else it was done before it could be stopped
        assert process.exitcode != 0
        assert (folder / "checkpoints" / f"step-{stopped_after}" / "state.json").is_file()
    finish(start(processes, tiny_llama, folder, checkpoint_every=1000))
    assert outcome(folder) == uninterrupted


def test_only_the_newest_checkpoints_and_the_best_stay(tiny_llama: Path, tmp_path: Path) -> None:
    train_tiny(tiny_llama, tmp_path / "run", checkpoint_every=2, validate_every=2)
    steps = sorted(int(p.name.removeprefix("step-")) for p in (tmp_path / "run" / "checkpoints").iterdir())
    valid = {line["step"]: line["valid_loss"] for line in Run(tmp_path / "run").metrics() if "valid_loss" in line}
    assert steps[-2:] == [18, 20]
    assert min(valid, key=lambda s: valid[s]) in steps
    assert len(steps) <= 3


def test_early_stopping_keeps_the_best_weights(tiny_llama: Path, tmp_path: Path) -> None:
    train_tiny(tiny_llama, tmp_path / "run", epochs=30, learning_rate=0.05, validate_every=2, early_stopping=2)
    lines = Run(tmp_path / "run").metrics()
    valid = {line["step"]: line["valid_loss"] for line in lines if "valid_loss" in line}
    best = min(valid, key=lambda s: valid[s])
    assert lines[-1]["step"] == best + 4 < 150
    kept = (tmp_path / "run" / "checkpoints" / f"step-{best}" / "learned" / "adapter_model.safetensors").read_bytes()
    assert kept == (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_loss_that_is_no_number_ends_the_run_with_the_mend(tiny_llama: Path, tmp_path: Path) -> None:
    from tunery.errors import RunError

    with pytest.raises(RunError, match=r"step \d+: the loss is .*train\.learning_rate"):
        train_tiny(tiny_llama, tmp_path / "run", learning_rate=1e30, clip=None)
