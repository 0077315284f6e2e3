"""Which rows are trained on, which validate and which test: by content, so that nothing is on two sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def split(hashes: np.ndarray, fractions: dict[str, float], seed: int) -> dict[str, np.ndarray]:
    """hashes: (R,) uint64 content hashes → for each name (R,) bool, which rows are on that side; "train" gets the rest.

    Rows of one content go together. The order in which contents are dealt out depends on the content and the seed alone,
    not on a row's place: adding or moving rows changes little. Each side gets at least its share of the rows, and no
    more than the last group of equal rows brings, but always leaves a row to train on where there are two contents.
    """
    import numpy as np

    contents, group, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    order = np.argsort(_mixed(contents, seed), kind="stable")
    reached = np.cumsum(sizes[order])
    sides: dict[str, np.ndarray] = {}
    taken, at = 0, 0
    for name, fraction in fractions.items():
        target = taken + max(1, round(fraction * len(hashes)))
        stop = min(int(np.searchsorted(reached, target, side="left")) + 1, max(at, len(order) - 1))
        chosen = np.zeros(len(contents), dtype=bool)
        chosen[order[at:stop]] = True
        sides[name] = chosen[group]
        taken, at = int(reached[stop - 1]) if stop else 0, stop
    left = np.zeros(len(contents), dtype=bool)
    left[order[at:]] = True
    sides["train"] = left[group]
    return sides


def repeat(rows: np.ndarray, weight: float, seed: int) -> np.ndarray:
    """The rows as often as an epoch shows them: a weight of 2.5 gives each twice and a seeded half of them a third time."""
    import numpy as np

    whole, part = divmod(weight, 1.0)
    extra = np.random.default_rng(seed).permutation(len(rows))[: round(part * len(rows))]
    return np.concatenate([np.tile(rows, int(whole)), rows[np.sort(extra)]])


def _mixed(values: np.ndarray, seed: int) -> np.ndarray:
    """A seeded shuffle of 64-bit numbers (splitmix64, Steele, Lea and Flood 2014): equal numbers stay equal, others never meet."""
    import numpy as np

    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
