"""Reading rows: one source, whatever its form, becomes a stream of validated rows.

    read_rows("train.jsonl")            JSON lines, or a .json file with one array
    read_rows("train.csv")              CSV and TSV with a header line
    read_rows("train.parquet")          Parquet
    read_rows("train.conll")            CoNLL, one token and its tag a line (.txt too)
    read_rows("org/name:split")         a hub data set, streamed (extra `hub-data`)

A file is never read whole. Every refusal is a DataError that begins `FILE:LINE:`; without `on_problem` the first is
raised, with it each is handed over and its row is left out.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tunery.data import hub
from tunery.data.conll_rows import read_conll
from tunery.data.json_rows import read_json
from tunery.data.table_rows import read_csv, read_parquet
from tunery.data.validate import RowProblem, validate
from tunery.errors import DataError

FORMS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".conll", ".txt")

Problem = Callable[[DataError], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One row that training or evaluation can use.

    `kind` and `value`:
      chat        {"messages": [...], "weights": [float a message], "tools": [...] when there are any}; messages are in
                  the form that chat templates take (tool-call arguments are mappings), weights are 0 but for assistants
      completion  {"prompt": str, "completion": str}
      text        {"text": str}
      label       {"text": str, "label": str, "weight": float}
      tags        {"tokens": [str, ...], "tags": [str, ...], "weight": float}
      preference  {"messages", "chosen", "rejected", "weights", "tools"}, or of text {"prompt", "chosen", "rejected"}; see `preference.pair`
    `source` is the file's path or the data set's id; `line` is the physical line where the row begins (JSON, CSV), or the
    row's number from 1 (Parquet, hub).
    """

    kind: str
    value: dict[str, Any]
    source: str
    line: int


def read_rows(source: str, base: Path | None = None, on_problem: Problem | None = None) -> Iterator[Row]:
    """The rows of a source, one after the other; a relative path is relative to `base`.

    Raises DataError (only the first problem, when `on_problem` is None), MissingExtraError when an optional reader is
    not installed, InputError when a data hub cannot be reached.
    """
    problem = _Counter(on_problem or _raise)
    raw_rows, name = _open(source, base, problem)
    first: Row | None = None
    for line, raw in raw_rows:
        try:
            row = Row(*validate(raw), source=name, line=line)
        except RowProblem as e:
            problem(DataError(name, line, str(e)))
            continue
        if first is None:
            first = row
        elif row.kind != first.kind:
            problem(
                DataError(
                    name, line, f"this is a {row.kind} row, but line {first.line} is a {first.kind} row; keep one kind of row in a file"
                )
            )
            continue
        yield row
    if first is None and not problem.count:
        problem(
            DataError(
                name, None, 'there are no rows in it (the file is empty); write one JSON object a line, for example {"messages": [...]}'
            )
        )


def resolve(source: str, base: Path | None = None) -> Path | None:
    """The file that a source names, or None when it names a hub data set. Raises DataError when it can be neither."""
    path = Path(source).expanduser()
    path = base / path if base is not None else path
    name = str(path)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError):  # a name too long, or with a NUL byte
        raise DataError(repr(source[:200]), None, "this is not a usable file name; name a file") from None
    if is_file:
        if path.suffix.lower() not in FORMS:
            raise DataError(
                name, None, f"the form `{path.suffix or 'without an extension'}` is not known; save it as one of {', '.join(FORMS)}"
            )
        return path
    if is_folder:
        raise DataError(name, None, f"this is a folder; name one file in it ({', '.join(FORMS)})")
    if path.suffix.lower() not in FORMS and hub.is_identifier(source):
        return None
    try:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1, cutoff=0.5)
    except OSError:
        near = []
    raise DataError(name, None, f"there is no such file; {f'did you mean `{path.parent / near[0]}`?' if near else 'check the path'}")


def _open(source: str, base: Path | None, problem: Problem) -> tuple[Iterator[tuple[int, Mapping[str, Any]]], str]:
    try:
        path = resolve(source, base)
    except DataError as e:
        problem(e)
        return iter(()), source
    if path is None:
        return hub.read(source, problem), source
    reader: Callable[[Path, Problem], Iterator[tuple[int, Mapping[str, Any]]]]
    readers = {".csv": read_csv, ".tsv": read_csv, ".parquet": read_parquet, ".conll": read_conll, ".txt": read_conll}
    reader = readers.get(path.suffix.lower(), read_json)
    return reader(path, problem), str(path)


class _Counter:
    """Hands problems on and counts them."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.count = problem, 0

    def __call__(self, error: DataError) -> None:
        self.count += 1
        self.problem(error)


def _raise(error: DataError) -> NoReturn:
    raise error
