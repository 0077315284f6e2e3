"""A trial before the first step: the largest batch is computed and thrown away, so that what does not fit fails at once.

What it took is the memory in the run's plan. The time in it is measured in the first real steps, so nothing is computed only for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from tunery.errors import RunError
from tunery.machine import peak_memory
from tunery.sharding._engine import Engine
from tunery.train.learners import positions

MEASURED = 3
"""Steps after which the time of a run is known. The first is no measure for the others: it makes the optimiser's state."""


def trial(
    steps: Sequence[np.ndarray],
    lengths: np.ndarray,
    batches: Callable[[np.ndarray], Sequence[Any]],
    compute: Callable[[Any, bool], object],
    engine: Engine,
) -> int:
    """The peak memory in bytes of a run of these steps, over all processes, from its largest batch alone.

    batches: this process's batches of a step's rows, as many as every other process has. compute: adds the gradient of a batch; the flag
    says that no other follows. A step of several batches needs no more than its largest one while all gradients are there, so where steps
    have several, gradients are there before. They are thrown away and random states restored, so nothing changes what follows. Raises
    RunError with the mend when it does not fit on the device.
    """
    tokens = np.array([lengths[s].sum() for s in steps])
    most, longest = int(tokens.argmax()), int(np.argmax([lengths[s].max() for s in steps]))
    own: list[Any] = []
    learned = list(engine.parameters.values())
    devices = [learned[0].device] if learned and learned[0].device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            own += batches(steps[most])
            several = len(own) > 1
            if longest != most:  # a batch may be larger than those of the largest step, for a row that is longer
                own += batches(steps[longest])
            own.sort(key=positions)
            if several and engine.alone:
                for p in learned:
                    p.grad = torch.zeros_like(p)
            elif several:  # what gathers or exchanges gradients has its own place for them, which a batch fills
                compute(own[0], False)
            compute(own[-1], True)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
            if isinstance(e, RuntimeError) and not isinstance(e, torch.OutOfMemoryError) and "can't allocate memory" not in str(e):
                raise
            raise RunError(
                f"the largest batch ({max(map(positions, own), default=tokens.max())} tokens) does not fit into memory; lower "
                "train.tokens_per_step, train.rows_per_step or train.max_length, or set train.gradient_checkpointing to true"
            ) from None
        engine.forget(own[0])
    held = int(engine.summed(peak_memory())[0])
    return held + engine.copies * engine.moments()


class Pace:
    """How long a run will take, from its first steps: the clock runs within `step`."""

    def __init__(self, tokens: Sequence[int]) -> None:
        """tokens: of each step that is to be made, of which there is at least one."""
        self._tokens, self._seconds = list(tokens), list[float]()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within is a step."""
        started = time.monotonic()
        yield
        self._seconds.append(time.monotonic() - started)

    def known(self) -> float | None:
        """Seconds of all steps, once, after the last of those that are measured; else None."""
        n = len(self._seconds)
        if n != min(MEASURED, len(self._tokens)):
            return None
        if n == 1:
            return self._seconds[0]
        rate = sum(self._seconds[1:]) / sum(self._tokens[1:n])
        return self._seconds[0] + rate * sum(self._tokens[1:])
