"""`tunery resume RUN`: go on with a run that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def resume(
    run: Annotated[Path, typer.Argument(help="The run directory.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Go on with a run that was interrupted; the result is as if it had not been."""
    from tunery import pipeline
    from tunery.cli.train import finish
    from tunery.progress import Lines

    finish(pipeline.resume(run, Lines()), json)
