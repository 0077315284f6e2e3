"""The Markdown of `tunery methods` on a terminal: its tables with lines and colours."""

from __future__ import annotations

from typing import Any

_STYLES = {"yes": "green", "no": "red", "fails": "bold red", "untested": "yellow"}


def show(text: str) -> None:
    """Print it to standard output."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(highlight=False)
    for block in text.strip().split("\n\n"):
        console.print(_table(block) if block.startswith("|") else Markdown(block))
        console.print()


def _table(block: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    head, _, *rows = ([cell.strip().replace("\\|", "|").strip("`") for cell in _cells(line)] for line in block.splitlines())
    table = Table(show_edge=False)
    for title in head:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    return table


def _cells(line: str) -> list[str]:
    hidden = line.strip().strip("|").replace("\\|", "\0")
    return [cell.replace("\0", "|") for cell in hidden.split("|")]


def _style(cell: str) -> str:
    word = cell.partition(" ")[0]
    return _STYLES.get(word, "yellow" if word.replace("/", "").isdigit() and "/" in word else "")
