"""Two launchers, as on two machines, each with one process: they join to one run."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import time
from pathlib import Path

import psutil
from launched import STEPS, assert_same_steps, command, finish, job, start

from tunery.run import Run


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def launch(job: Path, run: Path, tunery: Path) -> list[subprocess.Popen[str]]:
    """Both launchers of `tunery train`, the first one's first."""
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    where = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    train = ["--", str(tunery), "train", str(job), "--run", str(run), "--json"]
    return [start([*launcher, "--node-rank", str(rank), *where, *train]) for rank in range(2)]


def test_two_launchers_join_to_one_run(alone: Path, tiny_llama: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = launch(job(tmp_path / "job", tiny_llama, sharding="zero1"), run, command(tmp_path))
    (first, out, err), (second, silent, other) = (finish(s) for s in started)

    assert (first, second) == (0, 0), err[-3000:] + other[-3000:]
    assert json.loads(out)["status"] == "succeeded"
    assert silent == ""  # the first one tells
    assert_same_steps(run, alone)
    # Both computed: the memory is counted over the two of them, and one alone takes half of it.
    assert Run(run).read_json("report.json")["train"]["peak_memory_bytes"] > 1.5 * 150_000_000


def test_one_that_is_killed_ends_both_and_the_run_goes_on(alone: Path, tiny_llama: Path, tmp_path: Path) -> None:
    run, tunery = tmp_path / "run", command(tmp_path)
    started = launch(job(tmp_path / "job", tiny_llama, sharding="ddp"), run, tunery)
    at = random.SystemRandom().randint(1, STEPS // 2)
    while len(Run(run).metrics()) < at and all(s.poll() is None for s in started):
        time.sleep(0.01)
    trainers = [p for p in psutil.Process(started[1].pid).children(recursive=True) if str(tunery) in p.cmdline()]
    assert len(trainers) == 1, [finish(s) for s in started]
    trainers[0].kill()
    killed = time.monotonic()
    (first, out, err), (second, _, _) = (finish(s, 90) for s in started)

    assert time.monotonic() - killed < 60
    assert (first, second) == (1, 1), err[-3000:]
    reason = json.loads(out)["error"]
    assert reason.startswith("another process ended while they trained together (")
    assert reason.endswith(f"go on with `tunery resume {run}`")
    assert Run(run).read_json("report.json")["status"] == "failed"

    code, _, err = finish(start([str(tunery), "resume", str(run), "--json"]))
    assert code == 0, err[-3000:]
    assert_same_steps(run, alone)
