"""Seconds to train and to evaluate: counted operations over a machine's rates."""

from __future__ import annotations

import numpy as np

from tunery.plan.rates import Rates
from tunery.plan.workload import Workload

OPTIMISER_BYTES, CLIP_BYTES = 28, 12
"""Of a learned number, in float32: AdamW reads weight, gradient and two moments and writes three of them; clipping reads every gradient for
its norm, then reads and writes it."""
GENERATED_TOGETHER = 256
"""Rows whose answers are generated at once (`infer._reading.ROWS`); the weights are read once for all."""
VOLUME = {"none": 0, "ddp": 2, "zero1": 2, "zero2": 2, "zero3": 3, "fsdp": 3}
"""What a process sends a step, in sizes of what is exchanged ("ZeRO", arXiv:1910.02054, section 7)."""


def train_seconds(work: Workload, rates: Rates, dtype: str, sharding: str = "none", processes: int = 1, link: float | None = None) -> float:
    """All steps. link: bytes a second between processes that have a device each; None: they share one, which takes as long for all."""
    sizes = [size for size, _ in work.counted]
    costs = [
        rates.seconds(c.operations, "autocast" if work.autocast else dtype) + rates.moving(work.recast_bytes, dtype, "dequantised")
        for _, c in work.counted
    ]
    seconds = sum(n * float(np.interp(size, sizes, costs)) for size, n in work.batches)
    step = rates.moving(work.learned_parameters * (OPTIMISER_BYTES + CLIP_BYTES), how="streamed")
    if link is None or processes == 1:
        return seconds + work.steps * step
    gathers = sharding in ("zero3", "fsdp")
    exchanged = work.base_bytes if gathers else work.learned_parameters * 4
    times = sum(n for _, n in work.batches) / processes if gathers else work.steps
    sent = VOLUME[sharding] * exchanged * (processes - 1) / processes * max(times, work.steps)
    return seconds / processes + work.steps * step + sent / link


def evaluate_seconds(work: Workload, rates: Rates, dtype: str) -> float:
    """The test rows before and after: scored, and where the task answers, answers generated, as long as they may be."""
    size, largest = work.counted[-1]
    position = rates.seconds(largest.forward, dtype) / size
    generated = work.test_rows * work.new_tokens
    reading = generated / GENERATED_TOGETHER * rates.moving(work.base_bytes, dtype)
    return 2 * ((work.test_tokens + generated) * position + reading)
