"""`tunery export RUN_OR_MODEL --to FORM --out DIR`: the model in another form, with proof that it is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunery.cli.common import console, emit


def export(
    model: Annotated[str, typer.Argument(help="A run directory, or a bare model: catalogue name, hub id, folder, .gguf file.")],
    to: Annotated[str, typer.Option(help="adapter, merged, onnx, onnx:int4, gguf, gguf:q8_0 …, or hub:org/name for a run.")],
    out: Annotated[Path | None, typer.Option(help="The folder to make; it is then itself the loadable model.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Export a run or a model; what is not provably the same model is not kept."""
    from tunery import publish
    from tunery.errors import InputError
    from tunery.progress import Lines

    form, _, place = to.partition(":")
    if form == "hub":
        pushed = publish.export_to_hub(model, place, Lines())
        if json:
            emit(pushed)
            return
        seen = "private" if pushed["private"] else "public"
        console().print(f"{pushed['url']}: {pushed['form']}, {seen}, commit {pushed['commit']}", soft_wrap=True)
        return
    if out is None:
        raise InputError(f"--to {to}: --out is missing; name the folder to make")
    entry = publish.export_one(model, to, out, Lines())
    if json:
        emit(entry)
        return
    figures = f"greedy match {entry['greedy_match']:.4f}, largest logit difference {entry['max_logit_difference']:.2g}"
    console().print(f"{out}: {entry['precision']}, {entry['bytes'] / 1e6:.0f} MB, {figures}", soft_wrap=True)
