"""Whole jobs in several processes: stopped, killed, resumed, and joined under torchrun; the result is that of one process."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from launched import JOB, assert_same_steps, command, finish, job, start, steps, trainers, when

from tunery.errors import Interrupted, RunError
from tunery.pipeline import finetune, resume
from tunery.run import Run


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
        killed.append(time.monotonic())
        trainers(run)[1].kill()

    when(run, stopped_after + 20, kill)
    with pytest.raises(RunError, match=r"process 1 of 2 was ended by SIGKILL.*its log .*rank-1\.log.*go on with `tunery resume"):
        resume(run)
    assert time.monotonic() - killed[0] < 60
    assert RunError.exit_code == 1
    assert Run(run).read_json("report.json")["status"] == "failed"
    assert trainers(run) == []

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--", str(command(tmp_path))]
    code, _, err = finish(start([*torchrun, "resume", str(run), "--json"]))
    assert code == 0, err[-3000:]
    assert_same_steps(run, alone)
    report = Run(run).read_json("report.json")
    assert report["status"] == "succeeded"
    assert report["train"]["trainable_parameters"] == Run(alone).read_json("report.json")["train"]["trainable_parameters"]
    assert report["train"]["peak_memory_bytes"] > 1.5 * 150_000_000  # of both processes
    assert sorted(p.name for p in (run / "adapter").iterdir()) == sorted(p.name for p in (alone / "adapter").iterdir())


def test_an_error_in_a_process_is_the_errors_own_sentence(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = job(tmp_path / "job", tiny_llama, sharding="ddp", train={**JOB["train"], "learning_rate": 1e30, "clip": None})
    with pytest.raises(RunError, match=r"^step \d+: the loss is .*train\.learning_rate"):
        finetune(recipe, tmp_path / "run")
