"""Whole jobs in several processes: stopped, killed, resumed, and joined under torchrun; the result is that of one process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from jobs import write_job

from tunery.errors import Interrupted, RunError
from tunery.pipeline import finetune, resume
from tunery.run import Run

JOB: dict[str, Any] = {"train": {"epochs": 20, "checkpoint_every": 7, "learning_rate": 1e-3}, "evaluate": {"forgetting_tokens": 0}}
STEPS = 240


def job(folder: Path, model: Path, **changes: Any) -> Path:
    folder.mkdir()
    recipe = write_job(folder, model, **{**JOB, **changes})
    recipe.write_text(recipe.read_text().replace("  test: test.jsonl\n", ""))
    return recipe


def steps(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in Run(run).metrics()]


def when(run: Path, reached: int, act: Any) -> threading.Thread:
    """Do something when a run has made so many steps."""

    def wait() -> None:
        while len(Run(run).metrics()) < reached:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def trainers(run: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "tunery.launch" in process.cmdline() and str(run.resolve()) in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """The job in one process."""
    folder = tmp_path_factory.mktemp("alone")
    return finetune(job(folder / "job", tiny_llama), folder / "run").path


def test_stopped_killed_and_joined_is_the_run_of_one_process(alone: Path, tiny_llama: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = job(tmp_path / "job", tiny_llama, sharding={"stage": "fsdp", "processes": 2})

    when(run, 10, lambda: os.kill(os.getpid(), signal.SIGINT))  # Ctrl-C
    with pytest.raises(Interrupted, match=r"stopped after step \d+ of 240; go on with `tunery resume"):
        finetune(recipe, run)
    stopped_after = len(steps(run))
    assert (run / "checkpoints" / f"step-{stopped_after}" / "state.json").is_file()
    assert Run(run).read_json("report.json")["status"] == "cancelled"
    assert trainers(run) == []

    killed: list[float] = []

    def kill() -> None:
        time.sleep(random.Random(0).random() * 0.1)
        second = max(trainers(run), key=lambda p: p.pid)
        killed.append(time.monotonic())
        second.kill()

    when(run, stopped_after + 20, kill)
    with pytest.raises(RunError, match=r"process 1 of 2 was ended by SIGKILL.*its log .*rank-1\.log.*go on with `tunery resume"):
        resume(run)
    assert time.monotonic() - killed[0] < 60
    assert RunError.exit_code == 1
    assert Run(run).read_json("report.json")["status"] == "failed"
    assert trainers(run) == []

    command = tmp_path / "command.py"
    command.write_text("from tunery.cli.main import run\nrun()\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "--", str(command), "resume", str(run), "--json"], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]

    several, one = steps(run), steps(alone)
    assert len(several) == len(one) == STEPS
    for mine, theirs in zip(several, one, strict=True):  # rounding grows over the steps
        assert mine == pytest.approx(theirs, rel=1e-5 if mine["step"] < 20 else 1e-3)
    report = Run(run).read_json("report.json")
    assert report["status"] == "succeeded"
    assert report["train"]["trainable_parameters"] == Run(alone).read_json("report.json")["train"]["trainable_parameters"]
    assert report["train"]["peak_memory_bytes"] > 1.5 * 150_000_000  # of both processes
    assert sorted(p.name for p in (run / "adapter").iterdir()) == sorted(p.name for p in (alone / "adapter").iterdir())


def test_an_error_in_a_process_is_the_errors_own_sentence(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = job(tmp_path / "job", tiny_llama, sharding="ddp", train={**JOB["train"], "learning_rate": 1e30, "clip": None})
    with pytest.raises(RunError, match=r"^step \d+: the loss is .*train\.learning_rate"):
        finetune(recipe, tmp_path / "run")
