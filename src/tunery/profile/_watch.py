"""A few steps from the middle of a training under torch.profiler; see `train/watch.py` for when the loop calls this.

Each step is profiled by itself and reduced to sums at once, since a profile of a step is large. Allocations are recorded in the last of
them alone.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tunery.profile import alive, record, spent
from tunery.profile._scopes import scopes
from tunery.profile.scope import STEP
from tunery.profile.stages import Stage, measured
from tunery.run import Run

STEPS = 3
"""How many steps are profiled, where there are as many after the first."""
LATEST = 100
"""They begin at the middle of the run, but after at most so many steps: a long run may be stopped early."""
OPERATIONS = 12
"""How many operations are named, the longest first."""
MATRIX = 4096
"""Side of the square matrices by which a GPU's rate is measured."""


def chosen(first: int, steps: int) -> range:
    """The numbers of the steps to profile, of those from `first` to `steps`. The first one warms up, if there is another."""
    count = min(STEPS, max(1, steps - first))
    begin = min((first + steps - count + 2) // 2, first + LATEST, steps - count + 1)
    return range(begin, begin + count)


class Watcher:
    """Fills the run's profile.json; in the first process alone. Within it, as a context, is the training.

    A run that is stopped before all chosen steps were profiled chooses others when it goes on.
    """

    def __init__(self, run: Run, model: Any, engine: Any, learner: Any, trains_base: bool, dtype: str) -> None:
        """dtype: what products are computed in."""
        self.run, self.model, self.engine, self.learner = run, model, engine, learner
        self.trains_base, self.dtype = trains_base, dtype
        self.cuda = model.device.type == "cuda"
        known = record.read(run)
        self._earlier: dict[str, Any] = known.get("training") or {}
        self._chosen: range | None = range(0) if "step" in known else None
        self._spent = spent.Spent()
        self._profiled: list[float] = []
        self._others: list[float] = []
        self._profiling = 0.0
        self._memory: dict[str, Any] | None = None
        self._trial: Stage | None = None

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._write(error is None)
        if error is None and self.cuda:
            rates = {"matrix": _matrix_rate(getattr(torch, self.dtype))}
            record.add(self.run, machine={"name": torch.cuda.get_device_name(), "rates": rates, "library_bytes": 0})

    @contextmanager
    def trial(self) -> Iterator[None]:
        with measured() as self._trial:
            yield

    @contextmanager
    def step(self, number: int, steps: int) -> Iterator[None]:
        if self._chosen is None:
            self._chosen = chosen(number, steps)
        started = time.monotonic()
        if number not in self._chosen:
            yield
            self._others.append(time.monotonic() - started)
            return
        last = number == self._chosen[-1]
        with self._recorded(last), record_function(STEP):
            yield
            if self.cuda:
                torch.cuda.synchronize()
            self._profiled.append(time.monotonic() - started)
        if last:
            self._write(True)
        self._profiling += time.monotonic() - started - self._profiled[-1]

    @contextmanager
    def _recorded(self, with_memory: bool) -> Iterator[None]:
        # Kineto writes lines of its own to standard error below this level.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        gradients: set[int] = set()
        with scopes(self.model, self.engine, self.learner), measured() as resident:
            optimise = self.engine.step

            def step() -> Any:
                gradients.update(_addresses(self.engine.parameters.values()))
                return optimise()

            self.engine.step = step  # `scopes` takes it off again
            with profile(activities=activities, record_shapes=True, profile_memory=with_memory) as found:
                yield
        results = found.profiler.kineto_results  # type: ignore[union-attr]
        kernels = spent.kernels_of(iter(results.events())) if self.cuda else None
        allocations = spent.add(self._spent, results.experimental_event_tree(), kernels)
        if with_memory:
            device = "cuda" if self.cuda else "cpu"
            held = alive.held(self.model, self.engine, self.trains_base)
            size = torch.cuda.memory_reserved() if self.cuda else resident.peak_bytes
            self._memory = {"held": held, "resident_bytes": size, **alive.height(allocations, gradients, device)}

    def _write(self, whole: bool) -> None:
        """What is known by now, into the run, together with what an earlier sitting measured. whole: no other step will be profiled."""
        sums, steps, earlier = self._spent, self._spent.steps if whole or self._memory else 0, self._earlier
        training: dict[str, Any] = {
            "device": self.model.device.type,
            "dtype": self.dtype,
            "threads": torch.get_num_threads(),
            "processes": self.engine.world,
            "trial": self._trial.after(None) if self._trial else earlier.get("trial"),
            "steps_seconds": round(sum(self._profiled) + sum(self._others) + earlier.get("steps_seconds", 0.0), 3),
            "profiling_seconds": round(self._profiling + earlier.get("profiling_seconds", 0.0), 3),
            "median_step_seconds": statistics.median(self._others) if self._others else earlier.get("median_step_seconds"),
            "profiled_steps": {str(n): round(s, 4) for n, s in zip(self._chosen or (), self._profiled, strict=False)}
            or earlier.get("profiled_steps", {}),
        }
        record.add(self.run, training=training)
        if not steps:
            return
        parts: dict[str, dict[str, float]] = {}
        for (part, backward), seconds in sums.seconds.items():
            parts.setdefault(part, {"forward": 0.0, "backward": 0.0})["backward" if backward else "forward"] += seconds / steps
        longest = sorted(sums.operations.items(), key=lambda found: -found[1][0])[:OPERATIONS]
        step = {
            "seconds": sums.wall / steps,
            "parts": parts,
            "flops": {part: flops / steps for part, flops in sums.flops.items()},
            "product_seconds": {part: seconds / steps for part, seconds in sums.product_seconds.items()},
            "operations": [
                {"name": name, "part": part, "seconds": seconds / steps, "calls": calls / steps}
                for (part, name), (seconds, calls) in longest
            ],
        }
        record.add(self.run, step=step, memory=self._memory)


def _addresses(parameters: Iterable[Any]) -> set[int]:
    """Where the gradients of these parameters lie."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return {(g.to_local() if hasattr(g, "to_local") else g).untyped_storage().data_ptr() for g in grads}


def _matrix_rate(dtype: torch.dtype) -> float:
    """Floating point operations a second of a product that fills a GPU. Of a CPU, `plan.calibration` knows it."""
    x = torch.linspace(-1, 1, MATRIX * MATRIX, device="cuda").view(MATRIX, MATRIX).to(dtype)  # not random: what follows may draw numbers
    seconds = []
    for _ in range(8):
        torch.cuda.synchronize()
        started = time.perf_counter()
        x @ x
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return float(2 * MATRIX**3 / statistics.median(seconds[2:]))


def watching(run: Run, model: Any, engine: Any, learner: Any, trains_base: bool, dtype: str) -> Watcher | None:
    """Who is to look on in this process: somebody where the run is profiled and this process is the first."""
    return Watcher(run, model, engine, learner, trains_base, dtype) if engine.rank == 0 and record.wanted(run) else None
