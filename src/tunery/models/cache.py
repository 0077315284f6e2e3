"""Tunery's cache: what was converted or hashed once and is only read afterwards.

The folder is `TUNERY_CACHE`, or `$XDG_CACHE_HOME/tunery`, or `~/.cache/tunery`. Everything in it can be deleted at any
time; it is made again when it is needed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tunery.run import new_folder

Progress = Callable[[str], None]


def cache_folder() -> Path:
    """The cache's root. It may not exist yet."""
    own = os.environ.get("TUNERY_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tunery"


def build_once(target: Path, build: Callable[[Path], None], progress: Progress | None = None) -> Path:
    """The folder `target`, built by `build(empty folder)` when it is not there yet.

    Of several processes that ask at once, one builds and the others wait. A build that fails or is killed leaves
    nothing at `target`.
    """
    if target.is_dir():
        return target
    with _only_process(target.parent / f".{target.name}.lock", target.name, progress):
        if not target.is_dir():
            for stale in target.parent.glob(f".{target.name}.*"):  # of a process that was killed: we hold the lock, so nobody writes there
                if stale.is_dir():
                    shutil.rmtree(stale, ignore_errors=True)
            with new_folder(target) as folder:
                build(folder)
    return target


@contextmanager
def _only_process(file: Path, what: str, progress: Progress | None) -> Iterator[None]:
    from filelock import FileLock, Timeout

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0.05)
    except Timeout:
        if progress:
            progress(f"another process is making {what}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
