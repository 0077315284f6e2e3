"""What trackers are tested with: the lines that a loop would write, a report, and a real MLflow server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from tunery.run import Run, write_text

LINES: list[dict[str, Any]] = [
    {
        "step": n,
        "loss": 3.0 / n,
        "learning_rate": 1e-3 / n,
        "tokens": 100 + n,
        "seconds": 0.5 * n,
        **({"valid_loss": 2.0} if n == 6 else {}),
    }
    for n in range(1, 9)
]
REPORT: dict[str, Any] = {
    "status": "succeeded",
    "train": {"steps": 8, "seconds": 4.0, "peak_memory_bytes": 1_000_000},
    "data": {"train_rows": 96},
    "evaluation": {
        "rows": 24,
        "before": {"exact_match": {"value": 0.25, "low": 0.125, "high": 0.5}},
        "after": {"exact_match": {"value": 0.75, "low": 0.5, "high": 0.875}},
    },
    "exports": {"onnx": {"path": "onnx", "greedy_match": 1.0, "max_logit_difference": 1e-5, "bytes": 10}},
}


def train(run: Run, lines: list[dict[str, Any]], kept: int = 0) -> None:
    """Write metrics.jsonl as the loop does: the lines of the `kept` first steps at once, in a new file, then one after another."""
    write_text(run.metrics_file, "".join(json.dumps(line) + "\n" for line in run.metrics()[:kept]))
    with run.metrics_file.open("a", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
            file.flush()


class Said:
    """A progress that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def show(self, what: str, done: float, total: float | None = None, detail: str = "") -> None:
        pass

    def say(self, message: str) -> None:
        self.lines.append(message)


class Server:
    """A real MLflow tracking server on this machine, in a process of its own; `stop` and `start` keep its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--artifacts-destination", str(self.folder / "files")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("PYTHONPATH", None)
        log = (self.folder / "log.txt").open("ab")
        self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=2):
                    return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log.txt").read_text()[-2000:]
                time.sleep(0.1)
        raise AssertionError("the MLflow server did not start: " + (self.folder / "log.txt").read_text()[-2000:])

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None
