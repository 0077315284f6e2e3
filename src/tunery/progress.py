"""Showing that long work goes on: one line that is rewritten on a terminal, a line every few seconds in a log.

A stage is handed a `Progress` and calls `show(done, total, text)`; it never knows where that is printed.
"""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO


class Progress(Protocol):
    """What a stage may say while it works."""

    def show(self, what: str, done: float, total: float | None = None, detail: str = "") -> None:
        """`what` is being done, `done` of `total` units of it are, and `detail` is worth showing beside."""

    def say(self, message: str) -> None:
        """A line that stays."""


class Quiet:
    """Says nothing; for tests and for callers that only want the result."""

    def show(self, what: str, done: float, total: float | None = None, detail: str = "") -> None:
        pass

    def say(self, message: str) -> None:
        pass


class Lines:
    """Progress on a text stream, standard error unless told otherwise."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.every = 0.1 if self.terminal else every
        self._what, self._started, self._printed, self._open = "", 0.0, 0.0, False
        self._first_done = 0.0

    def show(self, what: str, done: float, total: float | None = None, detail: str = "") -> None:
        now = time.monotonic()
        if what != self._what:
            self._close()
            self._what, self._started, self._printed, self._first_done = what, now, 0.0, done
        finished = total is not None and done >= total
        if now - self._printed < self.every and not finished:
            return
        self._printed = now
        parts = [what]
        if total:
            parts.append(f"{100 * done / total:3.0f} %")
        if detail:
            parts.append(detail)
        gained = done - self._first_done
        if total and gained > 0 and not finished:
            parts.append(f"{clock((now - self._started) / gained * (total - done))} left")
        line = "  ".join(parts)
        if self.terminal:
            self.stream.write(f"\r\x1b[2K{line}")
            self._open = True
            if finished:
                self._close()
        else:
            self.stream.write(line + "\n")
        self.stream.flush()
        if finished:
            self._what = ""

    def say(self, message: str) -> None:
        self._close()
        self.stream.write(message + "\n")
        self.stream.flush()

    def _close(self) -> None:
        if self._open:
            self.stream.write("\n")
            self._open = False


def clock(seconds: float) -> str:
    """A duration as a person says it: `45 s`, `3:20 min`, `2:05 h`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"
