"""`tunery check RECIPE`: read the data as training would, show what is learned, and name every problem."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunery.cli.common import console, emit


def check(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key of the recipe: train.epochs=1")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Check a recipe and its data; nothing is trained. Training refuses what this refuses."""
    from tunery.cli.check_view import show
    from tunery.data.check import check as check_data
    from tunery.inputs import absolute
    from tunery.models.cache import cache_folder
    from tunery.models.load import load_tokenizer
    from tunery.progress import Lines
    from tunery.recipe import read
    from tunery.resolve import resolve, with_labels

    progress = Lines()
    written = read(recipe, set_ or ())
    base = recipe.resolve().parent
    resolved = with_labels(resolve(absolute(written, base), progress, str(recipe)), base)
    renderer = resolved.renderer(load_tokenizer(resolved.folder))
    train = resolved.recipe.train
    assert train.max_length is not None
    result = check_data(
        resolved.recipe.data,
        renderer,
        max_length=train.max_length,
        context=resolved.context,
        seed=train.seed,
        base=base,
        cache=cache_folder(),
        kinds=resolved.task.ROWS,
        progress=lambda done, total, what: progress.show(what, done, total),
    )
    if not json:
        show(result, console())
    else:
        emit(result.report())
    if result.problems:
        raise typer.Exit(2)
