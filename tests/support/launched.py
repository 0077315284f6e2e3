"""Whole jobs in several processes, for tests that watch them, stop them and kill them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from jobs import write_job

from tunery.run import Run

JOB: dict[str, Any] = {"train": {"epochs": 20, "checkpoint_every": 7, "learning_rate": 1e-3}, "evaluate": {"forgetting_tokens": 0}}
STEPS = 240
SOURCE = Path(__file__).parents[2] / "src"


def job(folder: Path, model: Path, **changes: Any) -> Path:
    """A recipe of `STEPS` steps without test rows, in a new folder."""
    folder.mkdir()
    recipe = write_job(folder, model, **{**JOB, **changes})
    recipe.write_text(recipe.read_text().replace("  test: test.jsonl\n", ""))
    return recipe


def steps(run: Path) -> list[dict[str, Any]]:
    """What the run has measured of each step, but for the time."""
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
    """The processes that train in this run and come from this one, in the order of their ranks."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "tunery.launch" in process.cmdline() and str(run.resolve()) in process.cmdline():
                found.append((int(process.environ()["RANK"]), process))
        except psutil.Error:
            continue
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def command(folder: Path) -> Path:
    """A file that is the `tunery` command: `python FILE train …`."""
    file = folder / "command.py"
    file.write_text("from tunery.cli.main import run\nrun()\n")
    return file


def start(arguments: Sequence[str], *before: Path, **environment: str) -> subprocess.Popen[str]:
    """`python ARGUMENTS` with our source on its path, and the folders `before` ahead of it; one thread, no network but the machine's own."""
    own = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [*before, SOURCE])),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        **environment,
    }
    return subprocess.Popen([sys.executable, *arguments], env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(started: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str, str]:
    """Wait for it: exit code, standard output, standard error. Killed when it takes longer."""
    try:
        out, err = started.communicate(timeout=seconds)
    finally:
        started.kill()
    return started.returncode, out, err


def assert_same_steps(run: Path, alone: Path) -> None:
    """All steps were made, once each, and are those of the other run; rounding grows over the steps."""
    several, one = steps(run), steps(alone)
    assert [s["step"] for s in several] == [s["step"] for s in one] == list(range(1, STEPS + 1))
    import pytest

    for mine, theirs in zip(several, one, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5 if mine["step"] < 20 else 1e-3)
