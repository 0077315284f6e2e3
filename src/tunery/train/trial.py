"""A trial before the first step: the largest step is computed and thrown away, so that what does not fit fails at once.

What it took is the run's plan: the memory that the processes then hold, and the time of all steps at the speed measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tunery.errors import RunError
from tunery.machine import peak_memory
from tunery.sharding._engine import Engine


def trial(
    steps: Sequence[np.ndarray], lengths: np.ndarray, compute: Callable[[np.ndarray], object], engine: Engine, batch: Callable[[], Any]
) -> dict[str, float]:
    """`{"peak_memory_bytes", "seconds"}` of a run of these steps, from its largest and a middling one, over all processes.

    compute: adds the gradient of the given rows. batch: makes any batch, for engines that need one to forget. Gradients are thrown away
    and random states restored, so nothing changes what follows. Raises RunError with the mend when the largest step does not fit on the
    device.
    """
    tokens = np.array([lengths[s].sum() for s in steps])
    learned = list(engine.parameters.values())
    devices = [learned[0].device] if learned and learned[0].device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            compute(steps[int(tokens.argmax())])
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
            if isinstance(e, RuntimeError) and not isinstance(e, torch.OutOfMemoryError) and "can't allocate memory" not in str(e):
                raise
            raise RunError(
                f"the largest step ({tokens.max()} tokens) does not fit into memory; lower train.tokens_per_step, train.rows_per_step or "
                "train.max_length, or set train.gradient_checkpointing to true"
            ) from None
        # The first pass also pays for what libraries prepare once, so another is timed.
        middle = int(np.argsort(tokens)[len(tokens) // 2])
        started = time.monotonic()
        compute(steps[middle])
        seconds = engine.largest(time.monotonic() - started)
        engine.forget(batch())
    held = int(engine.summed(peak_memory())[0])
    return {
        "peak_memory_bytes": held + engine.copies * engine.moments(),
        "seconds": round(seconds * float(tokens.sum() / tokens[middle]), 1),
    }
