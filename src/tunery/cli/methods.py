"""`tunery methods [METHOD]`: what there is to choose from, and what goes with what."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tunery.cli.common import emit


def methods(
    method: Annotated[
        str | None, typer.Argument(help="Show this one whole: its options, what it goes with, and why not with others.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Show every method, task, sharding and export, and which go together: Markdown when piped, tables on a terminal."""
    from tunery.combinations import table

    if json:
        emit(table.one_method(method) if method else table.as_data())
        return
    text = table.of_method(method) if method else table.in_full()
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    from tunery.cli.methods_view import show

    show(text)
