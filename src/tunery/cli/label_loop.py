"""Asking for labels on a terminal: one text a line, each by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tunery.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

HELP = "every line is one text, and is labelled by itself; /exit or Ctrl-D leaves"


def spoken(answer: dict[str, Any]) -> str:
    """A classifier's answer on one line: the label with its probability, or the words with the tags of those that have one."""
    end = "  (the text is longer than the model's context; its end was not read)" if answer["cut"] else ""
    if "label" in answer:
        return f"{answer['label']}  {100 * answer['probability']:.1f} %{end}"
    tagged = (word if tag == "O" else f"{word}/{tag}" for word, tag in zip(answer["tokens"], answer["tags"], strict=True))
    return " ".join(tagged) + end


def label_loop(ask: Callable[[str], str], console: Console, read_line: Callable[[str], str] | None = None) -> None:
    """Answer lines until `/exit` or the end of input. `read_line` shows a prompt and returns a line; it ends with EOFError."""
    from tunery.cli.chat_loop import note, terminal_line

    read_line = read_line or terminal_line
    note(console, HELP)
    while True:
        try:
            line = read_line("> ").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            note(console, "\nCtrl-D leaves")
            continue
        if line in ("/exit", "/quit"):
            return
        if not line:
            continue
        try:
            console.print(ask(line), markup=False, highlight=False, emoji=False, soft_wrap=True)
        except InputError as e:
            note(console, str(e))
