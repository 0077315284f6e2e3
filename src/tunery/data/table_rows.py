"""Tables: CSV and TSV with a header line, and Parquet.

The columns are the row's keys; columns that no row kind knows are ignored. In CSV, `messages` and `tools` hold JSON.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunery.data import labelled, other_forms
from tunery.data.json_rows import LONGEST_LINE, form, parse, text_lines
from tunery.data.validate import NEEDED, ROW_KEYS
from tunery.errors import DataError

_JSON_COLUMNS = ("messages", "tools", "functions", *labelled.JSON_KEYS, *other_forms.JSON_KEYS)


def read_csv(path: Path, problem: Callable[[DataError], None]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(physical line where the row begins, mapping) for each row of a CSV file (RFC 4180) or a .tsv file."""
    name = str(path)
    csv.field_size_limit(LONGEST_LINE)  # the module's own limit is 128 KiB, less than a long document
    try:
        with path.open("rb") as f:
            yield from _csv_rows(f, name, "\t" if path.suffix.lower() == ".tsv" else ",", problem)
    except OSError as e:
        problem(DataError(name, None, f"the file cannot be read ({e.strerror or e.__class__.__name__}); check its permissions"))


def _csv_rows(f: Any, name: str, delimiter: str, problem: Callable[[DataError], None]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    stop = False

    def lines() -> Iterator[str]:
        nonlocal stop
        for _, text in text_lines(f, name, problem):
            if text is None:  # a quoted field may run over lines: after a lost line nothing is certain
                stop = True
                return
            yield text

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for fields in reader:
            here, line = line, reader.line_num + 1
            if stop:
                return
            if not any(fields):
                continue
            if not header:
                header = [h.strip() for h in fields]
                twice = next((h for h in header if h and header.count(h) > 1), None)
                if twice is not None:
                    problem(DataError(name, here, f"the column `{twice}` is there twice; rename one of them"))
                    return
                if not ROW_KEYS & set(header):
                    problem(
                        DataError(
                            name,
                            here,
                            f"missing column: the header has {', '.join(header)[:200]}; {NEEDED}",
                        )
                    )
                    return
                continue
            if len(fields) != len(header):
                problem(
                    DataError(
                        name,
                        here,
                        f"this row has {len(fields)} fields, the header has {len(header)}; quote fields that hold commas",
                    )
                )
                continue
            row: dict[str, Any] = {k: v for k, v in zip(header, fields, strict=True) if k in ROW_KEYS}
            try:
                for key in _JSON_COLUMNS:
                    if key in row:
                        row[key] = _json_cell(row[key])
            except ValueError as e:
                problem(DataError(name, here, f"the column `{key}` is not valid JSON ({e}); write the list as JSON"))
                continue
            yield here, row
    except csv.Error as e:
        problem(DataError(name, line, f"not valid CSV ({e}); check the quotes from this line on"))


def _json_cell(text: str) -> Any:
    if not text.strip():
        return None
    value = parse(text)
    if not isinstance(value, list):
        raise ValueError(f"a list is needed, this is {form(value)}")
    return value


def read_parquet(path: Path, problem: Callable[[DataError], None]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(row number from 1, mapping) for each row of a Parquet file, in batches."""
    import pyarrow.parquet as parquet

    name, number = str(path), 0
    try:
        with parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            columns = [n for n in names if n in ROW_KEYS]
            if not columns:
                problem(
                    DataError(
                        name,
                        None,
                        f"missing column: it has {', '.join(names)[:200]}; {NEEDED}",
                    )
                )
                return
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {k: _parsed(v) if k in _JSON_COLUMNS else v for k, v in row.items()}
    except DataError:
        raise
    except Exception as e:  # pyarrow answers a damaged file with errors of many kinds
        problem(DataError(name, number + 1 if number else None, f"not a readable Parquet file ({_first_line(e)}); write it again"))


def _parsed(value: Any) -> Any:
    """A column of JSON text is as good as a column of lists."""
    if isinstance(value, str):
        try:
            return parse(value)
        except ValueError:
            return value
    return value


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [e.__class__.__name__])[0][:160]
