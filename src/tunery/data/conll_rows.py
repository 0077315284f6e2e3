"""CoNLL files: one token a line with its tag in the last column, and an empty line after each sentence.

The form of the CoNLL-2003 shared task (Tjong Kim Sang and De Meulder 2003): columns between the first and the last (part of speech,
chunk) are not read, and the lines `-DOCSTART-` that divide documents belong to no sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunery.data.json_rows import text_lines
from tunery.errors import DataError


def read_conll(path: Path, problem: Callable[[DataError], None]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line of its first token, {"tokens", "tags"}) for each sentence. Columns are set apart by tabs, or else by spaces."""
    name = str(path)
    try:
        with path.open("rb") as f:
            yield from _sentences(f, name, problem)
    except OSError as e:
        problem(DataError(name, None, f"the file cannot be read ({e.strerror or e.__class__.__name__}); check its permissions"))


def _sentences(f: Any, name: str, problem: Callable[[DataError], None]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    tokens: list[str] = []
    tags: list[str] = []
    begin, whole = 0, True
    for number, text in text_lines(f, name, problem):
        if text is not None and not text.strip():
            if tokens and whole:
                yield begin, {"tokens": tokens, "tags": tags}
            tokens, tags, whole = [], [], True
            continue
        columns = [] if text is None else text.rstrip("\r\n").split("\t") if "\t" in text else text.split()
        if columns and columns[0] == "-DOCSTART-":
            continue
        if not tokens:
            begin = number
        if len(columns) < 2:
            if text is not None:  # else it was said already
                problem(
                    DataError(
                        name,
                        number,
                        "this line has one column, and a token needs its tag; write both, or save plain text as JSON lines with `text`",
                    )
                )
            whole = False
        tokens.append(columns[0].strip() if columns else "")
        tags.append(columns[-1].strip() if columns else "")
    if tokens and whole:
        yield begin, {"tokens": tokens, "tags": tags}
