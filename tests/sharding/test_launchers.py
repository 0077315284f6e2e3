"""Two launchers, as on two machines, each with one process: they join to one run."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from launched import assert_same_steps, command, finish, job, start

from tunery.run import Run


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


@pytest.mark.parametrize("stage", ["zero1"])
def test_two_launchers_join_to_one_run(stage: str, alone: Path, tiny_llama: Path, tmp_path: Path) -> None:
    run, tunery = tmp_path / "run", str(command(tmp_path))
    recipe = job(tmp_path / "job", tiny_llama, sharding=stage)
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    where = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    train = ["--", tunery, "train", str(recipe), "--run", str(run), "--json"]
    started = [start([*launcher, "--node-rank", str(rank), *where, *train]) for rank in range(2)]
    (first, out, err), (second, silent, other) = (finish(s) for s in started)

    assert (first, second) == (0, 0), err[-3000:] + other[-3000:]
    assert json.loads(out)["status"] == "succeeded"
    assert silent == ""  # the first one tells
    assert_same_steps(run, alone)
    # Both computed: the memory is counted over the two of them, and one alone takes half of it.
    assert Run(run).read_json("report.json")["train"]["peak_memory_bytes"] > 1.5 * 150_000_000
