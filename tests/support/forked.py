"""The processes of a sharded run as forks of one process that has imported everything: a fifth of a second to start instead of eight.

    with forked_processes():
        tunery.finetune({..., "sharding": {"stage": "zero2", "processes": 2}})

Each is as fresh as one that was started by a command: what it is given is imported modules and nothing that was computed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from tunery.launch import processes

IMPORTED = ("import_all",)
"""Modules that the process from which all are forked imports first."""


@contextmanager
def forked_processes() -> Iterator[None]:
    """Within it `tunery.launch.processes` forks."""
    plain, path = processes.start_process, os.environ.get("PYTHONPATH")
    # The process that is forked is told of its modules by this alone.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), str(Path(processes.__file__).parents[2]), path]))
    processes.start_process = _fork
    try:
        yield
    finally:
        processes.start_process = plain
        os.environ.pop("PYTHONPATH")
        if path is not None:
            os.environ["PYTHONPATH"] = path


def _fork(arguments: list[str], environment: Mapping[str, str], log: Path, pipe: int | None) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    reading, writing = os.pipe()
    process = context.Process(target=_Child(arguments, dict(environment), str(log), reading, pipe))
    process.start()
    os.close(reading)
    return _Popen(process, writing)


class _Child:
    """What a forked process does. It is sent there with its end of the pipe that holds it to the one that asked for it."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: str, stdin: int, pipe: int | None) -> None:
        self.arguments, self.environment, self.log, self.stdin, self.pipe = arguments, environment, log, stdin, pipe

    def __getstate__(self) -> tuple[Any, ...]:
        return self.arguments, self.environment, self.log, DupFd(self.stdin), None if self.pipe is None else DupFd(self.pipe)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.arguments, self.environment, self.log, self._stdin, self._pipe = state

    def __call__(self) -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the process that is forked ignores it
        os.environ.update(self.environment)
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for target, source in ((0, self._stdin.detach()), (1, output), (2, output)):
            os.dup2(source, target)
        from tunery.launch.__main__ import main

        code = main(*self.arguments, *([] if self._pipe is None else [str(self._pipe.detach())]))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Popen:
    """A forked process with the part of `subprocess.Popen` that the launcher uses."""

    def __init__(self, process: BaseProcess, stdin: int) -> None:
        self._process, self.stdin = process, os.fdopen(stdin, "wb")
        assert process.pid is not None
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode
