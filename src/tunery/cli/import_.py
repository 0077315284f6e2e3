"""`tunery import FILE`: a recipe from another tool's configuration, and what of it a recipe cannot say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunery.cli.common import console, emit

if TYPE_CHECKING:
    from tunery.importers import Imported


def import_(
    file: Annotated[Path, typer.Argument(help="The configuration: YAML or JSON.")],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", help="The tool: axolotl, kaito, llamafactory, llamafactory_v1, olive, openai or trl; found out when left out."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The recipe to write; else it is printed.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Turn another tool's configuration into a recipe; every key that is not in the recipe is named, with its reason."""
    from tunery.errors import InputError
    from tunery.importers import read
    from tunery.run import write_text

    if out is not None and out.exists():
        raise InputError(f"{out}: there is a file already; remove it or name another")
    found = read(file, from_)
    text = _yaml(found, file)
    if out is not None:
        write_text(out, text)
    if json:
        left = [{"key": item.key, "reason": item.reason} for item in found.left_over]
        emit({"tool": found.tool, "recipe": found.recipe, "left_over": left, "notes": list(found.notes)})
    elif out is None:
        typer.echo(text, nl=False)
    for line in _account(found, file):
        console().print(line, markup=False, soft_wrap=True)
    if out is not None:
        console().print(f"{out}: written; try `tunery check {out}`", markup=False, soft_wrap=True)


def _yaml(found: Imported, file: Path) -> str:
    import yaml

    comments = "".join(f"# {line}\n" for line in _account(found, file))
    return comments + yaml.safe_dump(found.recipe, sort_keys=False, allow_unicode=True, width=140, default_flow_style=None)


def _account(found: Imported, file: Path) -> list[str]:
    """What was not understood first, then what has no counterpart, what is needless (keys with one reason share a line), and the notes."""
    lines = [f"from {file.name} ({found.tool})"]
    by_reason: dict[str, list[str]] = {}
    for item in found.left_over:
        by_reason.setdefault(item.reason, []).append(item.key)
    for kind in ("not understood", "no counterpart", "needless"):
        lines += [f"{', '.join(keys)}: {reason}" for reason, keys in by_reason.items() if reason.startswith(kind)]
    lines += [f"note: {note}" for note in found.notes]
    # A key of the file may hold anything; a line break in it would end the comment.
    return [" ".join("".join(c if c.isprintable() else " " for c in line).split()) for line in lines]
