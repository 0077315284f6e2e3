"""What the parts of a step are called while they are recorded: the name of a range, and what it says."""

from __future__ import annotations

from typing import NamedTuple

PREFIX = "tunery::"
STEP = PREFIX + "step"


class Scope(NamedTuple):
    """What an operation is inside of. For linear layers their sides, and of an adapter its rank (0: not known)."""

    name: str
    inputs: int = 0
    outputs: int = 0
    rank: int = 0

    @property
    def label(self) -> str:
        return PREFIX + "|".join(map(str, self))


def scope_of(label: str) -> Scope | None:
    """The scope of a range's name; None for a range that is not one of ours."""
    if not label.startswith(PREFIX):
        return None
    name, *numbers = label.removeprefix(PREFIX).split("|")
    return Scope(name, *map(int, numbers))
