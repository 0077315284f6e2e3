"""What `tunery check` knows: the prepared data, near-duplicates included, and every problem with its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunery.data.prepare import Prepared, prepare
from tunery.data.render import Renderer
from tunery.data.tokenised import Progress
from tunery.errors import DataError
from tunery.recipe import Data

SHOWN = 20
"""Problems that are listed; the rest is counted. A file that is wrong is often wrong on every line."""


@dataclass(frozen=True)
class CheckResult:
    """`problems` are the first `SHOWN` of `problem_count`; the data is good when there are none."""

    prepared: Prepared
    problems: list[DataError]
    problem_count: int

    @property
    def good(self) -> bool:
        return not self.problem_count

    def report(self) -> dict[str, Any]:
        """Everything, as plain values."""
        problems = [{"source": e.source, "line": e.line, "message": str(e)} for e in self.problems]
        return {"good": self.good, **self.prepared.stats.as_json(), "problems": problems, "problem_count": self.problem_count}


def check(
    data: Data,
    renderer: Renderer,
    max_length: int,
    context: int,
    seed: int,
    base: Path | None,
    cache: Path,
    progress: Progress | None = None,
    kinds: tuple[str, ...] | None = None,
) -> CheckResult:
    """Prepare the data as training would and collect what it would refuse. Arguments and InputError as in `prepare`."""
    problems: list[DataError] = []

    def collect(error: DataError) -> None:
        if len(problems) < SHOWN:
            problems.append(error)

    prepared = prepare(data, renderer, max_length, context, seed, base, cache, collect, progress, kinds, near_duplicates=True)
    return CheckResult(prepared, problems, prepared.problem_count)
