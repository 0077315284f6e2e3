"""What the two sides' adapters are worth after the same rows in the same steps: a section of bench/run.py's report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tunery import metrics

ROWS, STEPS = 16, 120
"""Rows a step, of both sides, and steps."""


def section(train: Callable[[str, Path], dict[str, Any]], ask: Callable[[Path], dict[str, Any]], work: Path) -> dict[str, Any]:
    """train: one side (`ours`, `peer`), its adapter written to the path. ask: what an adapter says of the test rows (`labels`)
    and what is right (`references`).
    """
    metric = metrics.get("accuracy")
    assert isinstance(metric, metrics.TextMetric)
    found: dict[str, Any] = {"rows_per_step": ROWS, "steps": STEPS}
    right: dict[str, np.ndarray] = {}
    for side in ("ours", "peer"):
        folder = work / f"learned-{side}"
        trained, answered = train(side, folder), ask(folder)
        right[side] = metric.rows(answered["labels"], answered["references"])
        found[side] = {"accuracy": metrics.interval(metric, right[side]), "seconds": trained["seconds"], "losses": trained["losses"]}
    found["test_rows"] = len(right["ours"])
    found["difference"] = metrics.paired(metric, right["peer"], right["ours"])
    return found


def table(found: dict[str, Any] | None) -> list[str]:
    """The section in Markdown, line by line."""
    if found is None:
        return []
    n, apart = found["test_rows"], found["difference"]
    lines = [
        "",
        "## Quality",
        "",
        f"Headlines, {found['steps']} steps of {found['rows_per_step']} rows on both sides, the same rows in the same order from the same "
        f"adapter; then both adapters judge {n} held-out headlines.",
        "",
        "| side | held-out accuracy (95 % bounds) | loss, mean of the last 20 steps |",
        "|---|---|---|",
    ]
    for side, name in (("ours", "Tunery"), ("peer", "TRL + PEFT")):
        one = found[side]["accuracy"]
        bounds = f"{one['value']:.1%} ({one['low']:.1%}–{one['high']:.1%})"
        lines.append(f"| {name} | {bounds} | {float(np.mean(found[side]['losses'][-20:])):.4f} |")
    return [*lines, "", f"Difference {apart['difference']:+.1%} ({apart['low']:+.1%} to {apart['high']:+.1%}), p = {apart['p_value']:.2f}."]
