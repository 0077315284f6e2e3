"""`tunery report RUN`: make the page again from what the run holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunery.cli.common import console, emit


def report(
    run: Annotated[Path, typer.Argument(help="The run directory.")],
    json: Annotated[bool, typer.Option("--json", help="report.json on standard output.")] = False,
) -> None:
    """Write the run's page again and print its table."""
    from tunery.errors import InputError
    from tunery.report.page import write_page
    from tunery.report.summary import before_after_table
    from tunery.run import Run

    opened = Run.open(run)
    content = opened.read_json("report.json")
    if content is None:
        raise InputError(f"{run}: this run has no report.json yet; finish it with `tunery resume {run}`")
    page = write_page(opened)
    if json:
        emit({**content, "run": str(run)})
    else:
        out = console()
        out.print(before_after_table(content))
        out.print(f"The page is {page}", soft_wrap=True)
