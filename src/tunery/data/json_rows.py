"""JSON lines, and a .json file that holds one array.

Stricter than Python's own reader: NaN and Infinity are not JSON (RFC 8259, section 6), and a key that is there twice
(section 4: "unpredictable") is refused, because one of the two values would be lost in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from tunery.errors import DataError

LONGEST_LINE = 64 * 2**20
"""Bytes. A longer line is no row of text but a broken file; reading it would fill the memory."""

_BOM = b"\xef\xbb\xbf"
_BLANK = " \t\r\n"


def read_json(path: Path, problem: Callable[[DataError], None]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line, object) for each row. A UTF-8 BOM, CRLF and blank lines are accepted; what cannot be read goes to `problem`."""
    name = str(path)
    try:
        with path.open("rb") as f:
            if path.suffix.lower() == ".json":
                start = f.read(4096).removeprefix(_BOM).lstrip()
                if start[:1] == b"[":
                    f.seek(0)
                    yield from _array(f.read(), name, problem)
                    return
                f.seek(0)
            yield from _lines(f, name, problem)
    except OSError as e:
        problem(DataError(name, None, f"the file cannot be read ({e.strerror or e.__class__.__name__}); check its permissions"))


def text_lines(f: Any, name: str, problem: Callable[[DataError], None]) -> Iterator[tuple[int, str | None]]:
    """(line number, decoded line with its line end) for each physical line; the text is None where a problem was handed over."""
    number = 0
    while line := f.readline(LONGEST_LINE + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) > LONGEST_LINE:
            problem(DataError(name, number, f"this line is longer than {LONGEST_LINE >> 20} MiB; write one row a line"))
            while line and not line.endswith(b"\n"):
                line = f.readline(LONGEST_LINE)
            yield number, None
            continue
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as e:
            wide = " (it looks like UTF-16)" if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
            problem(
                DataError(
                    name,
                    number,
                    f"byte 0x{line[e.start]:02x} at position {e.start + 1} of the line is not UTF-8{wide}; save the file as UTF-8",
                )
            )
            yield number, None


def parse(text: str) -> Any:
    """One JSON value. Raises ValueError with a short reason and its column, whatever the text is."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as e:
        raise ValueError(_reason(e)) from None
    except RecursionError:
        raise ValueError("nested too deep") from None


def _lines(f: Any, name: str, problem: Callable[[DataError], None]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, text in text_lines(f, name, problem):
        if text is None or not text.strip(_BLANK):
            continue
        try:
            value = parse(text)
        except ValueError as e:
            problem(DataError(name, number, f"not valid JSON ({e}); write one complete JSON object on this line"))
            continue
        if isinstance(value, Mapping):
            yield number, value
        else:
            problem(
                DataError(
                    name, number, f"a row is a JSON object, this is {form(value)}; write {{...}} on each line, or one array in a .json file"
                )
            )


def _array(content: bytes, name: str, problem: Callable[[DataError], None]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        text = content.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as e:
        line = content.removeprefix(_BOM).count(b"\n", 0, e.start) + 1
        problem(DataError(name, line, f"byte 0x{e.object[e.start]:02x} is not UTF-8; save the file as UTF-8"))
        return
    at, line, counted = _skip(text, text.index("[") + 1), 1, 0
    while at < len(text) and text[at] != "]":
        line += text.count("\n", counted, at)
        counted = at
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as e:
            reason = _reason(e) if isinstance(e, json.JSONDecodeError) else "nested too deep" if isinstance(e, RecursionError) else str(e)
            problem(DataError(name, line, f"not valid JSON ({reason}); mend the array, or write one object a line in a .jsonl file"))
            return
        if isinstance(value, Mapping):
            yield line, value
        else:
            problem(DataError(name, line, f"a row is a JSON object, this is {form(value)}; write {{...}}"))
        at = _skip(text, at)
        if at < len(text) and text[at] == ",":
            at = _skip(text, at + 1)
            if at < len(text) and text[at] == "]":
                break_at = text.count("\n", 0, at) + 1
                problem(DataError(name, break_at, "not valid JSON (a comma before the closing bracket); remove the comma"))
                return
        elif at < len(text) and text[at] != "]":
            problem(DataError(name, text.count("\n", 0, at) + 1, "not valid JSON (a comma is missing between two rows); add it"))
            return
    if at >= len(text):
        problem(DataError(name, text.count("\n") + 1, "not valid JSON (the array is not closed); the file is cut short, write it again"))
    elif _skip(text, at + 1) < len(text):
        problem(DataError(name, text.count("\n", 0, at) + 1, "not valid JSON (more text after the array); keep one array in the file"))


def form(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    return {bool: "true or false", str: "text", list: "a list", dict: "an object"}.get(type(value), "a number")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at


def _reason(e: json.JSONDecodeError) -> str:
    return f"{e.msg[:1].lower()}{e.msg[1:]} at column {e.colno}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return found


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON, write null or a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
