"""A small set of cases in which every two values that may stand together do so at least once.

Most mistakes come from one choice or from two that meet (Kuhn, Wallace and Gallo 2004, "Software fault interactions and implications for
software testing": 70 to 97 % of the faults they looked at). The generators on the package index take exclusions as a filter on half-made
rows and then leave pairs out without a word; here the allowed cells are few enough to be listed, so the cover is chosen among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping

Cell = Mapping[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]


def pairs_of(cell: Cell) -> set[Pair]:
    """Every two values of a cell, each with its axis."""
    return set(itertools.combinations(sorted(cell.items()), 2))


def cover(allowed: Iterable[Cell], cost: Callable[[Cell], float] = lambda cell: 1.0) -> list[Cell]:
    """Cells that hold every pair that any allowed cell holds: each time the one with the most pairs still missing for its cost.

    The same cells in the same order give the same cover.
    """
    waiting = [(cell, pairs_of(cell)) for cell in allowed]
    missing: set[Pair] = set().union(*(pairs for _, pairs in waiting))
    chosen: list[Cell] = []
    while missing:
        best, pairs = max(waiting, key=lambda each: len(each[1] & missing) / cost(each[0]))
        chosen.append(best)
        missing -= pairs
        # What has nothing left to give is not asked again.
        waiting = [each for each in waiting if each[1] & missing]
    return chosen
