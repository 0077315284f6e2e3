"""`tunery train RECIPE`: the whole job of a recipe, from data to report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tunery.cli.common import console, emit


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    run: Annotated[Path | None, typer.Option(help="The run directory to make; runs/<name>-<time> unless given.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key of the recipe: train.epochs=1")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also write where time and memory went: profile.html in the run.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Train, measure before and after, export, and write the report."""
    from tunery.pipeline import finetune
    from tunery.progress import Lines

    command = shlex.join(["tunery", *sys.argv[1:]])
    finish(finetune(recipe, run, set_ or (), Lines(), command, profile), json)


def finish(result: object, json: bool) -> None:
    """Print what a finished run has to show."""
    from tunery.pipeline import Result
    from tunery.profile import record
    from tunery.report.summary import before_after_table

    assert isinstance(result, Result)
    if not result.report:
        return  # of several processes, the first one tells
    page = result.path / record.PAGE
    profiled = {"profile": str(page)} if page.is_file() else {}
    if json:
        emit({**result.report, "run": str(result.path), **profiled})
    else:
        out = console()
        out.print(before_after_table(result.report))
        if profiled:
            from tunery.report.profile_summary import profile_table

            out.print(profile_table(result.run))
            out.print(f"Where time and memory went: {page}", soft_wrap=True)
        out.print(f"The run is in {result.path}, its page is {result.run.page_file}\nTalk to it: tunery chat {result.path}", soft_wrap=True)
