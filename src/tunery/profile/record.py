"""profile.json in a run directory: written when a profile is asked for, filled as the run goes on, kept over a stop and `tunery resume`.

    {"schema": 1, "whole_seconds": float,
     "stages": {STAGE: {"seconds": float, "end_bytes": int, "peak_bytes": int}},             resident memory of the process
     "training": {"device", "dtype", "threads", "processes", "trial": as a stage, "steps_seconds",
                  "profiling_seconds", "median_step_seconds": of those not profiled, "profiled_steps": {NUMBER: seconds}},
     "step": {"seconds", "parts": {PART: {"forward", "backward"}}, "flops": {PART: float}, "product_seconds": {PART: float},
              "operations": [{"name", "part", "seconds", "calls"}]},                           all of one step, the mean of the profiled
     "memory": {"held": {PART: bytes}, "passing": {KIND: bytes}, "kept": {SCOPE: bytes}, "resident_bytes": int},
     "machine": {"name": str, "rates": {KIND: float}, "library_bytes": int}}                   what `plan.calibration` measured

The names of parts are those of `parts.py`.
"""

from __future__ import annotations

from typing import Any

from tunery.run import Run

FILE = "profile.json"
PAGE = "profile.html"


def wanted(run: Run) -> bool:
    """Whether this run is profiled."""
    return (run.path / FILE).is_file()


def read(run: Run) -> dict[str, Any]:
    """What is known by now; empty for a run that is not profiled."""
    found: dict[str, Any] = run.read_json(FILE) or {}
    return found


def add(run: Run, **parts: Any) -> None:
    """Put these parts in place of what the file has under their names; the first call asks for a profile."""
    run.write_json(FILE, {"schema": 1, **read(run), **parts})
