"""All trackers of a run, kept from harming it.

They read metrics.jsonl while it is written, by whichever process trains, and the loop knows nothing of them. Each works in a thread of
its own, behind a queue, so a slow tracker slows nothing down. One that fails is said once in the log and dropped; at the end of a run
each has a while to finish, and one that does not is said and left behind.
"""

from __future__ import annotations

import json
import os
import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunery.errors import InputError, TuneryError
from tunery.progress import Progress
from tunery.recipe import Recipe
from tunery.run import Run
from tunery.trackers import Tracking, get

FILE = "tracking.json"
"""In the run directory: the id that each tracker gave the run, `{"mlflow": "…"}`."""
END_SECONDS = 60.0
LOOK_SECONDS = 1.0
"""How often metrics.jsonl is looked at."""
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY")


class Observers:
    """The trackers of a run under way. Nothing here raises, or waits for a tracker, before `end`.

    A run that goes on hands over its metrics.jsonl from the first line: each tracker knows what it has already.
    """

    def __init__(self, file: Path, following: Mapping[str, Tracking], progress: Progress) -> None:
        self._threads = [_Following(name, tracking, progress) for name, tracking in following.items()]
        self._progress, self._file = progress, file
        self._at, self._done, self._inode = 0, 0, -1
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read, name="metrics.jsonl", daemon=True)
        if self._threads:
            self._reader.start()

    def _read(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Hand on the whole lines that were written since the last look."""
        try:
            with self._file.open("rb") as file:
                inode, size = os.fstat(file.fileno()).st_ino, os.fstat(file.fileno()).st_size
                if inode != self._inode or size < self._at:  # a resumed run writes the lines anew that it keeps
                    self._inode, self._at = inode, 0
                file.seek(self._at)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._at += len(whole) + len(newline)
            lines = [json.loads(line) for line in whole.splitlines()]
        except (OSError, ValueError):  # not there yet, or cut this moment: the next look sees it
            return
        for line in lines:
            if line["step"] > self._done:
                self._done = line["step"]
                for thread in self._threads:
                    thread.lines.put(line)

    def end(self, report: Mapping[str, Any], seconds: float = END_SECONDS) -> None:
        """Hand over the last lines and the report, and wait until the trackers have everything, or `seconds` are over."""
        if not self._threads:
            return
        self._over.set()
        self._reader.join()
        self.look()
        for thread in self._threads:
            thread.lines.put(_End(report))
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                self._progress.say(f"track: {thread.name} did not take everything within {seconds:.0f} s; the run does not wait for it")
        self._threads = []


def begin(run: Run, recipe: Recipe, chosen: Sequence[tuple[str, Any]], progress: Progress) -> Observers:
    """Open the run at each chosen tracker (its name and its validated options), or go on with what it has of this run.

    Raises InputError when a tracker cannot be reached before the run was ever tracked: a wrong address is then found out before
    training. On a run that goes on it is only said, since training must not wait for an observer.
    """
    ids: dict[str, str] = run.read_json(FILE) or {}
    following: dict[str, Tracking] = {}
    for name, options in chosen:
        try:
            following[name] = get(name).begin(run, recipe, options, ids.get(name))
        except TuneryError:
            raise
        except Exception as e:
            if name not in ids:
                raise InputError(f"track: {name} cannot be used ({why(e)}); mend that, or leave it out of `track`") from None
            progress.say(f"track: {name} cannot go on with this run ({why(e)}); the run goes on without it")
            continue
        if ids.get(name) != following[name].id:
            ids[name] = following[name].id
            run.write_json(FILE, ids)
    return Observers(run.metrics_file, following, progress)


def why(error: Exception) -> str:
    """A library's error in one line, without what is secret in it."""
    line = (str(error).strip().splitlines() or [""])[0][:300]
    for name in SECRETS:
        if os.environ.get(name):
            line = line.replace(os.environ[name], "…")
    line = re.sub(r"//[^/@\s]+@", "//…@", line)  # a name and a password in an address
    return f"{error.__class__.__name__}: {line}" if line else error.__class__.__name__


class _End:
    def __init__(self, report: Mapping[str, Any]) -> None:
        self.report = report


class _Following(threading.Thread):
    """One tracker's thread: takes what lies in the queue, all of it at once, so a slow tracker is asked less often."""

    def __init__(self, name: str, tracking: Tracking, progress: Progress) -> None:
        super().__init__(name=name, daemon=True)
        self.tracking, self.progress = tracking, progress
        self.lines: queue.SimpleQueue[dict[str, Any] | _End] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        try:
            while True:
                lines: list[dict[str, Any]] = []
                item = self.lines.get()
                while not isinstance(item, _End):
                    lines.append(item)
                    if self.lines.empty():
                        break
                    item = self.lines.get()
                if lines:
                    self.tracking.steps(lines)
                if isinstance(item, _End):
                    self.tracking.end(item.report)
                    return
        except BaseException as e:  # a library may even call sys.exit; the training loop is not its business
            reason = why(e) if isinstance(e, Exception) else e.__class__.__name__
            self.progress.say(f"track: {self.name} failed ({reason}); the run goes on without it, metrics.jsonl has everything")
