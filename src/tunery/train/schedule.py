"""The learning rate over the steps of a run."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, schedule: str, warmup: float) -> float:
    """The rate of step `step` (counted from 1) of `steps`.

    It rises linearly over the first `warmup` share of the steps, then stays (`constant`), or falls to zero after the last step in a
    line (`linear`) or in half a cosine (`cosine`; Loshchilov & Hutter 2016).
    """
    rising = round(warmup * steps)
    if step <= rising:
        return peak * step / rising
    share = (step - rising - 1) / max(1, steps - rising)
    if schedule == "linear":
        return peak * (1 - share)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * share))
    return peak
