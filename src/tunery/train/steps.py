"""Which rows each optimiser step learns from: a pure function of the row lengths, the recipe and the seed.

So a resumed run needs only the step's number, and any number of processes sees the same rows in a step.
"""

from __future__ import annotations

import numpy as np


def plan_steps(
    lengths: np.ndarray,
    *,
    epochs: float,
    seed: int,
    rows_per_step: int | None = None,
    tokens_per_step: int | None = None,
    max_steps: int | None = None,
) -> list[np.ndarray]:
    """The row numbers of every step, in order.

    lengths: (N,) tokens of each row. Each epoch is a new permutation. With `tokens_per_step` a step takes rows until the next would
    exceed it (always at least one); with `rows_per_step` it takes that many. A step never spans two epochs, so the last one of an
    epoch may be smaller. `max_steps` cuts the run short, or repeats the data until it is reached.
    """
    if (rows_per_step is None) == (tokens_per_step is None):
        raise ValueError("give rows_per_step or tokens_per_step, one of them")
    steps: list[np.ndarray] = []
    n, epoch = len(lengths), 0
    while n and (len(steps) < max_steps if max_steps else epoch < epochs):
        order = np.random.default_rng((seed, epoch)).permutation(n)
        if not max_steps and epochs - epoch < 1:
            order = order[: max(1, round(n * (epochs - epoch)))]
        if rows_per_step is not None:
            cuts = np.arange(rows_per_step, len(order), rows_per_step)
        else:
            assert tokens_per_step is not None
            cuts = _token_cuts(lengths[order], tokens_per_step)
        steps.extend(np.split(order, cuts))
        epoch += 1
    return steps[:max_steps] if max_steps else steps


def _token_cuts(lengths: np.ndarray, budget: int) -> np.ndarray:
    cuts, filled = [], 0
    for i, length in enumerate(lengths.tolist()):
        if filled and filled + length > budget:
            cuts.append(i)
            filled = 0
        filled += length
    return np.array(cuts, dtype=np.int64)
