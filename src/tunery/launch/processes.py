"""Starting the processes of a run's training on this machine, watching them, and saying why one failed.

Each is `python -m tunery.launch RUN`. They meet over a file, so no port has to be free. Their output goes to `processes/rank-N.log` in the
run; the first one's progress comes back through a pipe. They end when this process does, however it ends: their standard input closes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunery import errors, machine
from tunery.errors import Interrupted, RunError, TuneryError
from tunery.progress import Progress
from tunery.run import Run
from tunery.sharding import MEETING

LOOK_SECONDS = 0.1
AFTERMATH_SECONDS = 2.0
"""How long others may take to end by themselves after one has failed: which one was the cause is then clear."""


def train(run: Run, count: int, progress: Progress) -> None:
    """Train in `count` processes. Raises what made one of them fail, or RunError naming it; Interrupted when this process is stopped."""
    logs = run.path / "processes"
    logs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tunery-") as meeting, _progress_pipe(progress) as pipe:
        workers = [_start(run, rank, count, Path(meeting), logs, pipe) for rank in range(count)]
        try:
            try:
                _wait(run, workers)
            except KeyboardInterrupt:
                _stop(run, workers)
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.wait()
                if worker.process.stdin:
                    worker.process.stdin.close()


class _Worker:
    """One process, and where it leaves its log and what made it fail."""

    def __init__(self, rank: int, process: subprocess.Popen[bytes], log: Path, failure: Path) -> None:
        self.rank, self.process, self.log, self._failure = rank, process, log, failure

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    def failure(self) -> dict[str, Any] | None:
        """What `__main__` wrote on its way out: `kind`, `message`, `time`."""
        try:
            found: dict[str, Any] = json.loads(self._failure.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found


def _start(run: Run, rank: int, count: int, meeting: Path, logs: Path, pipe: int) -> _Worker:
    threads = max(1, machine.cores() // count)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),  # they are all here, whatever the host is called
        **os.environ,
        MEETING: str(meeting / "meeting"),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "PYTHONUNBUFFERED": "1",
        # The same package, however this process found it.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
    }
    failure, log = meeting / f"failure-{rank}.json", logs / f"rank-{rank}.log"
    process = start_process([str(run.path.resolve()), str(failure)], environment, log, pipe if rank == 0 else None)
    return _Worker(rank, process, log, failure)


def start_process(arguments: list[str], environment: Mapping[str, str], log: Path, pipe: int | None) -> subprocess.Popen[bytes]:
    """`python -m tunery.launch ARGUMENTS` with its output in `log`, and `pipe` open in it if it is one."""
    command = [sys.executable, "-m", "tunery.launch", *arguments]
    with log.open("wb") as output:
        return subprocess.Popen(
            command if pipe is None else [*command, str(pipe)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=() if pipe is None else (pipe,),
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )


def _wait(run: Run, workers: list[_Worker]) -> None:
    """Until all have ended well. Raises what made the first one fail, as soon as it does."""
    while any(worker.code is None for worker in workers):
        if any(worker.code for worker in workers):
            break
        time.sleep(LOOK_SECONDS)
    if not any(worker.code for worker in workers):
        return
    until = time.monotonic() + AFTERMATH_SECONDS
    while time.monotonic() < until and any(worker.code is None for worker in workers):
        time.sleep(LOOK_SECONDS)
    raise _reason(run, workers)


def _stop(run: Run, workers: list[_Worker]) -> None:
    """Pass a request to stop on: they end after the step, with a checkpoint. Raises Interrupted."""
    for worker in workers:
        if worker.code is None:
            worker.process.send_signal(signal.SIGINT)
    since: float | None = None
    while any(worker.code is None for worker in workers):
        early = [w for w in workers if w.code is not None and (w.failure() or {}).get("kind") != "Interrupted"]
        since = since or (time.monotonic() if early else None)
        if since and time.monotonic() - since > AFTERMATH_SECONDS:  # one was not training yet, and the others wait for it
            break
        time.sleep(LOOK_SECONDS)
    messages = [failure["message"] for w in workers if (failure := w.failure()) and failure["kind"] == "Interrupted"]
    raise Interrupted(messages[0] if messages else f"stopped; go on with `tunery resume {run.path}`") from None


def _reason(run: Run, workers: list[_Worker]) -> TuneryError:
    """Why training failed: a process that was killed explains more than the others that lost it, and our own errors more than a library's."""
    resumed = f"go on with `tunery resume {run.path}`"
    killed = next((w for w in workers if w.code is not None and w.code < 0), None)
    if killed is not None:
        assert killed.code is not None
        name = signal.Signals(-killed.code).name
        why = ", which is what a system does that runs out of memory" if name == "SIGKILL" else ""
        return RunError(f"process {killed.rank} of {len(workers)} was ended by {name}{why}; {_last_line(killed)}; {resumed}")
    failed = sorted((failure["time"], w.rank, failure) for w in workers if (failure := w.failure()))
    known = [(rank, failure) for _, rank, failure in failed if _class_of(failure["kind"])]
    if known:
        kind = _class_of(known[0][1]["kind"])
        assert kind is not None
        return kind(known[0][1]["message"])
    if failed:
        _, rank, failure = failed[0]
        return RunError(
            f"process {rank} of {len(workers)} failed: {failure['kind']}: {failure['message']}; {_last_line(workers[rank])}; {resumed}"
        )
    ended = next(w for w in workers if w.code)
    return RunError(f"process {ended.rank} of {len(workers)} ended with exit code {ended.code}; {_last_line(ended)}; {resumed}")


def _class_of(name: str) -> type[TuneryError] | None:
    found = getattr(errors, name, None)
    if not (isinstance(found, type) and issubclass(found, TuneryError)):
        return None
    return errors.InputError if found is errors.DataError else found


def _last_line(worker: _Worker) -> str:
    lines = [line.strip() for line in worker.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"its log {worker.log} ends with: {lines[-1][:300]}" if lines else f"its log {worker.log} is empty"


@contextmanager
def _progress_pipe(progress: Progress) -> Iterator[int]:
    """A file descriptor into which a `Reported` progress is written, and out of which `progress` is told."""
    reading, writing = os.pipe()

    def tell() -> None:
        with os.fdopen(reading, encoding="utf-8") as lines:
            for line in lines:
                try:
                    what, arguments = json.loads(line)
                except ValueError:
                    continue  # cut off by a kill
                (progress.show if what == "show" else progress.say)(*arguments)

    thread = threading.Thread(target=tell, name="progress of the processes", daemon=True)
    thread.start()
    try:
        yield writing
    finally:
        os.close(writing)
        thread.join(5)


class Reported:
    """A progress that is told in another process, through a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)

    def show(self, what: str, done: float, total: float | None = None, detail: str = "") -> None:
        self._file.write(json.dumps(["show", [what, done, total, detail]]) + "\n")

    def say(self, message: str) -> None:
        self._file.write(json.dumps(["say", [message]]) + "\n")
