"""A process that is killed at any step ends the command with its reason, and the run goes on from there."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from launched import STEPS, assert_same_steps, command, finish, job, start, steps, trainers

from tunery.run import Run

SOON = 60.0
"""Seconds within which the command has ended."""


@pytest.mark.parametrize(("stage", "rank"), [("zero2", 0), ("zero3", 1)])
def test_a_killed_process_ends_the_command_and_resume_finishes(
    stage: str, rank: int, alone: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    run, tunery = tmp_path / "run", str(command(tmp_path))
    recipe = job(tmp_path / "job", tiny_llama, sharding={"stage": stage, "processes": 2})
    at = random.SystemRandom().randint(1, STEPS // 2)  # another one in every run: no step is special
    training = start([tunery, "train", str(recipe), "--run", str(run), "--json"])
    while len(Run(run).metrics()) < at and training.poll() is None:
        time.sleep(0.01)
    found = trainers(run)
    assert len(found) == 2, finish(training)
    found[rank].kill()
    killed = time.monotonic()
    code, out, err = finish(training, SOON + 30)

    assert time.monotonic() - killed < SOON
    assert code == 1, f"killed at step {at}: {err[-3000:]}"
    reason = err.strip().splitlines()[-1]
    assert f"process {rank} of 2 was ended by SIGKILL" in reason
    assert f"its log {run}/processes/rank-{rank}.log" in reason
    assert f"go on with `tunery resume {run}`" in reason
    assert "Traceback" not in err
    assert f"process {rank} of 2 was ended by SIGKILL" in json.loads(out)["error"]
    assert Run(run).read_json("report.json")["status"] == "failed"
    assert not any(process.is_running() for process in found)
    assert at <= len(steps(run)) < STEPS

    code, out, err = finish(start([tunery, "resume", str(run), "--json"]))
    assert code == 0, err[-3000:]
    assert json.loads(out)["status"] == "succeeded"
    assert_same_steps(run, alone)
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
