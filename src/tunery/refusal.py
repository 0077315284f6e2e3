"""Why two choices do not go together: the form in which each part of a recipe declares it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

AXES = ("task", "method", "sharding", "precision", "device", "export", "model")
"""What can be combined. `model` is `decoder` or `encoder`; the others hold the names that a recipe uses."""


@dataclass(frozen=True)
class Refusal:
    """The part that declares it does not work where every axis of `when` has one of the values named for it.

    reason: why, in words for a user. source: the document or the public thread that says so, or the test of ours that found it.
    instead: the nearest choice that works, as a line of a recipe.
    """

    when: Mapping[str, tuple[str, ...]]
    reason: str
    source: str
    instead: str

    def __post_init__(self) -> None:
        unknown = set(self.when) - set(AXES)
        if unknown or not self.when:
            raise ValueError(f"a refusal names axes of {AXES}, not {sorted(unknown)}")

    def meets(self, choice: Mapping[str, str]) -> bool:
        """Whether this combination is meant. An axis that `choice` leaves open is not met."""
        return all(choice.get(axis) in values for axis, values in self.when.items())
