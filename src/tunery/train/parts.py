"""Which rows of a step each process takes, and how the processes stay together.

The rows of a step are the same for any number of processes. What gathers weights, or exchanges gradients, with every batch needs the same
number of batches everywhere: where a process has fewer, it computes one again and counts it as nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunery.train.packs import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunery.sharding._engine import Engine
    from tunery.train.learners import Learner

WINDOW = 256
"""Rows of a process whose batches are counted together when all rows are walked through."""


def part_of(step: np.ndarray, lengths: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The rows of `step` that process `rank` of `world` takes, in the step's order: about the same number of tokens each.

    The longest row goes first, each to the process with the fewest tokens so far. There may be none, when there are fewer rows than processes.
    """
    if world == 1:
        return step
    own: list[int] = []
    loads = [(0, r) for r in range(world)]
    for place in np.argsort(-lengths[step], kind="stable").tolist():
        tokens, taker = heapq.heappop(loads)
        heapq.heappush(loads, (tokens + int(lengths[step[place]]), taker))
        if taker == rank:
            own.append(place)
    return step[sorted(own)]


@dataclass(frozen=True)
class Turn:
    """One batch of a process. `counts`: False where it only keeps the others company; `last`: no other of the step follows."""

    batch: Any
    counts: bool
    last: bool


def batches(engine: Engine, learner: Learner, model: PreTrainedModel, rows: Sequence[TokenRow], spare: TokenRow) -> Iterator[Turn]:
    """This process's batches of its `rows` of a step, as many as every other process has.

    spare: any row of the step, for a process that has none.
    """
    if engine.world == 1:
        before: Any = None
        for batch in learner.batches(model, rows):  # made one after the other: a step may be large
            if before is not None:
                yield Turn(before, True, False)
            before = batch
        if before is not None:
            yield Turn(before, True, True)
        return
    own = list(learner.batches(model, rows))
    filler = own[-1] if own else next(iter(learner.batches(model, [spare])))
    count = int(engine.largest(len(own)))
    for n in range(count):
        yield Turn(own[n] if n < len(own) else filler, n < len(own), n == count - 1)


def all_rows(engine: Engine, learner: Learner, model: PreTrainedModel, rows: Any) -> Iterator[Turn]:
    """This process's batches of all `rows`, which are too many to be held at once."""
    if engine.world == 1:
        for batch in learner.batches(model, (rows[i] for i in range(len(rows)))):
            yield Turn(batch, True, False)
        return
    window = WINDOW * engine.world
    for start in range(0, len(rows), window):
        chosen = np.arange(start, min(start + window, len(rows)))
        own = [rows[i] for i in part_of(chosen, rows.lengths, engine.rank, engine.world).tolist()]
        yield from batches(engine, learner, model, own, rows[start])
