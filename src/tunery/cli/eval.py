"""`tunery eval RUN`: measure the trained model again, on the run's own test rows or on others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunery.cli.common import console, emit


def eval(
    run: Annotated[Path, typer.Argument(help="The run directory.")],
    data: Annotated[Path | None, typer.Option(help="Rows to measure on; the run's own test rows unless given.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Measure the base model, without what was learned.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Measure a run's model, or its base, with the metrics of its recipe and 95 % bounds."""
    from tunery.evaluate.again import evaluate_again
    from tunery.progress import Lines

    found = evaluate_again(run, data, base, Lines())
    if json:
        emit(found)
        return
    from rich.table import Table

    table = Table(title=f"{'base' if base else 'trained'} model, {found['rows']} rows", title_justify="left")
    for name in ("metric", "value", "95 % bounds"):
        table.add_column(name)
    for name, m in found["metrics"].items():
        table.add_row(name, f"{m['value']:.4f}", f"{m['low']:.4f} to {m['high']:.4f}")
    console().print(table)
