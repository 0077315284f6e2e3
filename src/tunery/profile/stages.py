"""The stages of a whole job by the clock on the wall: how long each took, and the process's resident memory at its end and its height."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tunery import machine
from tunery.profile import record
from tunery.run import Run

LOOK_SECONDS = 0.02
"""How often the resident size is looked at; a height between two looks is found only where it is the highest so far."""


@dataclass
class Stage:
    """Seconds, and bytes of resident memory. Filled when its stage has ended."""

    seconds: float = 0.0
    end_bytes: int = 0
    peak_bytes: int = 0

    def after(self, earlier: dict[str, Any] | None) -> dict[str, Any]:
        """As JSON, together with what an earlier sitting had of the same stage."""
        before = earlier or {}
        return {
            "seconds": round(self.seconds + before.get("seconds", 0.0), 3),
            "end_bytes": self.end_bytes,
            "peak_bytes": max(self.peak_bytes, before.get("peak_bytes", 0)),
        }


@contextmanager
def measured() -> Iterator[Stage]:
    """Time and memory of a block."""
    import psutil

    process, stage, over = psutil.Process(), Stage(), threading.Event()
    highest, begun = machine.peak_memory(), time.monotonic()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            stage.peak_bytes = max(stage.peak_bytes, process.memory_info().rss)

    watcher = threading.Thread(target=look, name="resident memory", daemon=True)
    stage.peak_bytes = process.memory_info().rss
    watcher.start()
    try:
        yield stage
    finally:
        over.set()
        watcher.join()
        stage.seconds = time.monotonic() - begun
        stage.end_bytes = process.memory_info().rss
        ever = machine.peak_memory()
        stage.peak_bytes = max(stage.peak_bytes, stage.end_bytes, ever if ever > highest else 0)


class Clock:
    """The stages of a job, in its run's profile.json. Where no profile is wanted it does nothing."""

    def __init__(self, wanted: bool, from_start: bool = False) -> None:
        """from_start: this process was started for the job, so the time since then is its first stage."""
        self.wanted = wanted
        self._run: Run | None = None
        self._stages: dict[str, Stage] = {}
        self._noted = time.monotonic()
        if wanted and from_start:
            import psutil

            process = psutil.Process()
            passed, resident = time.time() - process.create_time(), process.memory_info().rss
            self._noted -= passed
            self._stages["start"] = Stage(passed, resident, max(resident, machine.peak_memory()))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within is the stage of this name; it ends also where it fails."""
        if not self.wanted:
            yield
            return
        with measured() as found:
            try:
                yield
            finally:
                self._stages[name] = found
        self.note()

    def keep(self, run: Run) -> None:
        """From now on in this run's file, which may hold what an earlier sitting measured."""
        self._run = run
        self.note()

    def note(self) -> None:
        """Write what is known by now."""
        if not self.wanted or self._run is None:
            return
        known = record.read(self._run)
        stages = dict(known.get("stages", {}))
        for name, stage in self._stages.items():
            stages[name] = stage.after(stages.get(name))
        self._stages = {}
        now = time.monotonic()
        record.add(self._run, stages=stages, whole_seconds=round(known.get("whole_seconds", 0.0) + now - self._noted, 3))
        self._noted = now
