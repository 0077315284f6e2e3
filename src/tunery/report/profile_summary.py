"""A run's profile for the terminal: the parts of a training step, and the memory at its height."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunery.profile import record
from tunery.report.format import duration, percent, size
from tunery.report.profile_content import memory, parts, stages, title, utilisation
from tunery.run import Run

if TYPE_CHECKING:
    from rich.table import Table


def profile_table(run: Run) -> Table:
    """Each part of a training step with its milliseconds and its share; under it the memory at the step's height, and the stages."""
    from rich.table import Table

    profile = record.read(run)
    reached = utilisation(profile)
    held = ", ".join(f"{name.lower()} {size(bytes_)}" for name, bytes_ in memory(profile))
    took = ", ".join(f"{name} {duration(seconds)}" for name, seconds, _, _ in stages(profile))
    notes = [
        "" if reached is None else f"{percent(reached, 0)} of the machine's measured matrix rate over the whole step.",
        held and f"Memory at its height: {held}.",
        took and f"The job: {took}.",
    ]
    table = Table(title=title(profile), title_justify="left", title_style="bold", show_edge=False)
    table.caption, table.caption_justify = "\n".join(filter(None, notes)), "left"
    for name in ("part", "forward, ms", "backward, ms", "share"):
        table.add_column(name, justify="left" if name == "part" else "right", no_wrap=True)
    for p in parts(profile):
        table.add_row(p.title, f"{1000 * p.forward:.1f}", f"{1000 * p.backward:.1f}", percent(p.share))
    return table
