"""The charts of profile.html: a step in its parts, and what lies in memory at its height."""

from __future__ import annotations

from collections.abc import Sequence

from tunery.report.format import percent, size
from tunery.report.profile_content import Part
from tunery.report.svg import AFTER, BEFORE, GRID, INK, inline, settings


def parts(shown: Sequence[Part]) -> str | None:
    """A bar for each part of a step, forward and backward one after the other. None without any."""
    return _bars(
        [(p.title, [1000 * p.forward, 1000 * p.backward], percent(p.share)) for p in shown],
        "Milliseconds of each part of a step: " + ", ".join(f"{p.title} {percent(p.share)}" for p in shown) + ".",
    )


def memory(shown: Sequence[tuple[str, int]]) -> str | None:
    """A bar for each part of the memory. None without any."""
    return _bars(
        [(name, [0.0, bytes_ / 1e6], size(bytes_)) for name, bytes_ in shown],
        "Memory of each part at the height of a step: " + ", ".join(f"{name} {size(bytes_)}" for name, bytes_ in shown) + ".",
    )


def _bars(rows: Sequence[tuple[str, Sequence[float], str]], spoken: str) -> str | None:
    from matplotlib.figure import Figure

    if not rows:
        return None
    with settings():
        figure = Figure(figsize=(12, 0.36 * len(rows) + 0.3), layout="constrained")
        axis = figure.subplots()
        places = range(len(rows))
        begun = [0.0] * len(rows)
        for n, colour in enumerate((AFTER, BEFORE) if any(values[0] for _, values, _ in rows) else (BEFORE, AFTER)):
            lengths = [values[n] for _, values, _ in rows]
            axis.barh(places, lengths, 0.62, left=begun, color=colour, linewidth=0)
            begun = [a + b for a, b in zip(begun, lengths, strict=True)]
        for place, (_, _, label) in zip(places, rows, strict=True):
            at = axis.annotate(label, (begun[place], place), xytext=(7, 0), textcoords="offset points")
            at.set(va="center", fontsize=11, color=INK)
        axis.set_yticks(places, [name for name, _, _ in rows], color=INK)
        axis.invert_yaxis()
        axis.set_xlim(0, max(begun) * 1.14 or 1)
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
        axis.spines["left"].set_visible(True)
        axis.spines["left"].set_color(GRID)
        return inline(figure, spoken)
