"""What every command shares: printing, JSON, and how an error ends a command."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Where people read: standard error, so that standard output stays clean for `--json`."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def emit(content: Any) -> None:
    """One JSON object on standard output."""
    out = _output[-1] if _output else sys.stdout
    out.write(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
    out.flush()


_output: list[TextIO] = []


@contextmanager
def output_kept_for_json(wanted: bool) -> Iterator[None]:
    """Within it only `emit` writes to standard output: what a library prints there goes to standard error."""
    if not wanted:
        yield
        return
    out = sys.stdout
    _output.append(out)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        _output.pop()
        sys.stdout = out


def fail(message: str, code: int, as_json: bool) -> int:
    """Say what went wrong; the exit code."""
    sys.stderr.write(f"{message}\n")
    if as_json:
        emit({"error": message, "exit_code": code})
    return code


def prepare_libraries() -> None:
    """Silence what libraries print on import, and set what must be set before they are imported."""
    # OpenMP's threads spin for some 300,000 rounds at every barrier, and beside another program they spin away its core, then wait for it.
    # A training step on two cores: 0.78 s instead of 0.74 alone, but 2.1 s instead of 8.3 beside one other busy process (docs/log.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # On import they tell of optional kernels that they did not find.
    for library in ("bitsandbytes", "DeepSpeed"):
        logging.getLogger(library).setLevel(logging.ERROR)
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
