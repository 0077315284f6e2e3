"""The tables of `tunery plan` on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from tunery.plan.fit import Fitting
    from tunery.plan.whole import Plan


def show(plan: Plan, out: Console) -> None:
    """Every candidate a line, what is refused with its reason, what was decided for the recipe and why, and the choice."""
    from rich.table import Table

    parts = list(plan.candidates[0].memory.parts) if plan.candidates else []
    table = Table(show_edge=False, title=f"{plan.machine}, {plan.precision}, {plan.steps} steps; memory of one process in GB")
    for title in ("method", "sharding", *parts, "one", "all", "learned", "train", "evaluate"):
        table.add_column(title, justify="left" if title in ("method", "sharding") else "right", no_wrap=True)
    if plan.price is not None:
        table.add_column("price", justify="right")
    if plan.watts is not None:
        table.add_column("Wh", justify="right")
    for c in plan.candidates:
        chosen = c is plan.choice.candidate
        cells = [c.method, c.sharding + (f" × {c.processes}" if c.processes > 1 else "")]
        cells += [f"{size / 1e9:.2f}" for size in c.memory.parts.values()]
        cells += [f"{c.memory.process_bytes / 1e9:.2f}", f"{c.memory.total_bytes / 1e9:.2f}", f"{c.learned_parameters / 1e6:.2f} M"]
        cells += [duration(c.seconds), duration(c.evaluate_seconds)]
        money, energy = plan.money(c), plan.energy(c)
        cells += ([] if money is None else [f"{money:.2f}"]) + ([] if energy is None else [f"{energy:.1f}"])
        table.add_row(*cells, style="bold green" if chosen else "")
    out.print(table)
    reasons: dict[str, list[str]] = {}
    for method, stage, reason in plan.refused:
        reasons.setdefault(reason, []).append(f"{method} × {stage}")
    for reason, which in reasons.items():
        out.print(f"not {', '.join(which)}: {reason}", style="yellow", soft_wrap=True)
    for sentence in plan.absent.sentences() if plan.absent else ():
        out.print(sentence, soft_wrap=True)
    if not plan.measured:
        out.print("Rates are shares of the data sheet's, not measured: take times for what they are.")
    if plan.decided:
        out.print(f"Decided where the recipe is open (the method's own settings and their reasons: tunery methods {plan.method}):")
        width = max(map(len, plan.decided))
        for key, reason in plan.decided.items():
            out.print(f"    {key:{width}}  {reason}", markup=False, soft_wrap=True)
    out.print("\n".join(plan.choice.reasons), soft_wrap=True)
    for line in plan.choice.lines:
        out.print(f"    {line}", markup=False, style="bold")


def show_fit(limit: int, found: Sequence[Fitting], out: Console) -> None:
    """The settings that fit, closest to the recipe first."""
    if not found:
        out.print(f"Nothing that was tried fits into {limit / 1e9:.2f} GB; choose a smaller model.")
    for one in found:
        c = one.candidate
        out.print(f"{c.memory.total_bytes / 1e9:.2f} GB, {duration(c.seconds)}:")
        for line in one.lines:
            out.print(f"    {line}", markup=False, style="bold")


def duration(seconds: float) -> str:
    """`12 s`, `3.4 min`, `2.1 h`."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
