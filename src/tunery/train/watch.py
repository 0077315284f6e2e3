"""Who looks on while the loop trains. What it does may take time, and changes no result."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Watch(Protocol):
    """Told by the loop of what it does, in the process that it is in."""

    def trial(self) -> AbstractContextManager[object]:
        """Within is the trial before the first step."""

    def step(self, number: int, steps: int) -> AbstractContextManager[object]:
        """Within is step `number` of `steps`, counted from one: from its rows to its changed weights, without what follows."""


class Nobody:
    """Looks at nothing."""

    def trial(self) -> AbstractContextManager[object]:
        return nullcontext()

    def step(self, number: int, steps: int) -> AbstractContextManager[object]:
        return nullcontext()
