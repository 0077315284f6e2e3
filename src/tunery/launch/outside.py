"""Processes that a launcher such as torchrun has started, on one machine or several: every one runs the same command.

The first does the whole job; the others only train, and wait until it gets there. The run directory must lie where all can read it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tunery.errors import InputError, RunError, TuneryError
from tunery.launch.work import take_part
from tunery.progress import Progress, Quiet
from tunery.run import Run
from tunery.sharding import started_outside

LOST = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe", re.IGNORECASE)
"""What torch's messages have in them when another process is gone; its errors have no class of their own for that."""


def follows() -> bool:
    """Whether this process is one that a launcher started, and not the first."""
    return started_outside() is not None and int(os.environ["RANK"]) > 0


def leads() -> bool:
    """Whether this process is the first of those that a launcher started."""
    return started_outside() is not None and int(os.environ["RANK"]) == 0


def follow() -> Run | None:
    """Train when the first process does; the run, or None when there was nothing left to train."""
    path = _agree(None)
    if path is None:
        return None
    if not (Path(path) / "recipe.yaml").is_file():
        raise InputError(
            f"{path}: the run directory is not here; all processes need it, so put it with --run where every machine can read it"
        )
    run = Run.open(path)
    _train(run, Quiet())
    return run


def lead(run: Run, progress: Progress) -> None:
    """Train as the first process."""
    _agree(str(run.path.resolve()))
    _train(run, progress)


def release() -> None:
    """Tell the others that there is nothing to train."""
    if (started_outside() or 1) > 1:
        _agree(None)


def _train(run: Run, progress: Progress) -> None:
    """Do this process's part. Raises RunError when another one has gone: its own launcher knows why, this one only that it is missing."""
    try:
        take_part(run, progress)
    except RuntimeError as e:
        if isinstance(e, TuneryError) or not LOST.search(str(e)):
            raise
        raise RunError(
            f"another process ended while they trained together ({str(e).splitlines()[0][:200]}); the output of its launcher says why; "
            f"go on with `tunery resume {run.path}`"
        ) from e


def _agree(path: str | None) -> str | None:
    from torch import distributed

    from tunery.sharding import _processes

    _processes.meet()
    found = [path]
    distributed.broadcast_object_list(found, src=0, device="cpu")
    return found[0]
