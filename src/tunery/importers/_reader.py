"""A configuration that remembers what was read of it, so that nothing can be dropped without a word.

An importer takes the values that it understands and leaves others with a reason. What is neither taken nor left when it is done is
listed as not understood: forgetting a key cannot hide it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tunery.errors import InputError

NOT_UNDERSTOOD = "not understood"
EMPTY = "needless here because it is empty, which is the same as leaving it out"
OFF = "needless here because it is off"

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class LeftOver:
    """A key of the file that is not in the recipe, and why: it begins `not understood`, `no counterpart because` or `needless here because`."""

    key: str
    reason: str


@dataclass
class _Book:
    root: Any
    taken: set[KeyPath] = field(default_factory=set)
    left: dict[KeyPath, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Reader:
    """One mapping of a configuration, at `path` of the whole."""

    def __init__(self, mapping: Mapping[str, Any], source: str, folder: Path, path: KeyPath = (), book: _Book | None = None) -> None:
        self.mapping, self.source, self.folder, self.path = mapping, source, folder, path
        self._book = book or _Book(mapping)

    def __contains__(self, key: str) -> bool:
        """Whether the key has a value; null is none."""
        return self.mapping.get(key) is not None

    def peek(self, key: str) -> Any:
        """The value, without having read it."""
        return self.mapping.get(key)

    def take(self, key: str) -> Any:
        """The value with everything below it, now read; None when there is none."""
        if self.mapping.get(key) is None:
            return None
        self._book.taken.add((*self.path, key))
        return self.mapping[key]

    def text(self, key: str) -> str | None:
        value = self.take(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise self.error(key, f"text is needed, not {_show(value)}")
        return value.strip() if value else None

    def number(self, key: str, low: float = 0.0) -> float | None:
        """A finite number of at least `low`. YAML reads `2e-5` as text, so numbers in text count."""
        value = self.take(key)
        if value is None:
            return None
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            found = math.nan
        if not math.isfinite(found):
            raise self.error(key, f"a number is needed, not {_show(value)}")
        if found < low:
            raise self.error(key, f"a number of at least {low:g} is needed, not {_show(value)}")
        return found

    def integer(self, key: str, low: int = 0) -> int | None:
        value = self.number(key, low)
        if value is None:
            return None
        if value != int(value):
            raise self.error(key, f"a whole number is needed, not {_show(self.mapping[key])}")
        return int(value)

    def flag(self, key: str) -> bool | None:
        value = self.take(key)
        if isinstance(value, str):
            value = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(value.strip().lower(), value)
        if value in (0, 1) and not isinstance(value, str):
            value = bool(value)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, f"true or false is needed, not {_show(value)}")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts, or one text with commas."""
        value = self.take(key)
        if value is None:
            return []
        if isinstance(value, str):
            value = value.split(",")
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.error(key, f"a list of names is needed, not {_show(value)}")
        return [v.strip() for v in value if v.strip()]

    def inside(self, key: str) -> Reader:
        """The mapping at the key; an empty one when there is none."""
        value = self.mapping.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(key, f"keys with values are needed, not {_show(value)}")
        return Reader(value or {}, self.source, self.folder, (*self.path, key), self._book)

    def each(self, key: str) -> Iterator[Reader]:
        """The mappings in the list at the key; one mapping counts as a list of one."""
        value = self.mapping.get(key)
        if isinstance(value, Mapping):
            yield self.inside(key)
            return
        if value is not None and not isinstance(value, list):
            raise self.error(key, f"a list is needed, not {_show(value)}")
        for n, item in enumerate(value or []):
            if not isinstance(item, Mapping):
                raise self.error(f"{key}[{n}]", f"keys with values are needed, not {_show(item)}")
            yield Reader(item, self.source, self.folder, (*self.path, key, n), self._book)

    def replace(self, key: str, value: Mapping[str, Any]) -> None:
        """Put what a text stands for in its place, so that its keys are accounted for one by one."""
        assert isinstance(self.mapping, dict)
        self.mapping[key] = value

    def leave(self, key: str, reason: str) -> None:
        """Say why the key, if it has a value, is not in the recipe. `reason` as `LeftOver` has it."""
        if key in self:
            self._book.left[(*self.path, key)] = reason
            self._book.taken.discard((*self.path, key))

    def leave_known(self, reasons: Mapping[str, str]) -> None:
        """Leave every key of `reasons` (`*` stands for any text) that nobody took. One that is switched off is needless."""
        for key in self.mapping:
            here = (*self.path, key)
            if key not in self or here in self._book.taken or here in self._book.left:
                continue
            reason = reasons.get(key) or next((r for k, r in reasons.items() if "*" in k and fnmatchcase(key, k)), None)
            if reason:
                off = self.mapping[key] in (False, 0, "", "none", "None", "no", [], {})
                self.leave(key, OFF if off and not reason.startswith("needless") else reason)

    def note(self, text: str) -> None:
        """Something to know about the recipe: a default that was written out, a guess to check."""
        self._book.notes.append(text)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._book.notes)

    def left_over(self) -> tuple[LeftOver, ...]:
        """Everything that was not taken, in the file's order."""
        found: dict[KeyPath, str] = {}
        for leaf, value in _leaves(self._book.root):
            for end in range(len(leaf), 0, -1):
                if leaf[:end] in self._book.taken:
                    break
                if leaf[:end] in self._book.left:
                    found.setdefault(leaf[:end], self._book.left[leaf[:end]])
                    break
            else:
                found[leaf] = EMPTY if value in (None, {}, []) else NOT_UNDERSTOOD
        return tuple(LeftOver(dotted(key), reason) for key, reason in found.items())

    def error(self, key: str, message: str) -> InputError:
        """An InputError that names the file and the key."""
        return InputError(f"{self.source}: {dotted((*self.path, key))}: {message}")


def dotted(path: KeyPath) -> str:
    """`datasets[0].path`. A key that is not one word stands in quotes."""
    parts = [f"[{p}]" if isinstance(p, int) else f".{p}" if re.fullmatch(r"[\w\[\]-]+", p) else f'."{_show(p)}"' for p in path]
    return "".join(parts).removeprefix(".")


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, Mapping) and (value or path):
        items: list[tuple[str | int, Any]] = list(value.items())
    elif isinstance(value, list):
        # A list of plain values is one value; a list of mappings has keys of its own.
        items = list(enumerate(value)) if any(isinstance(v, Mapping | list) for v in value) else []
    else:
        items = []
    if not items and path:
        yield path, value
    for key, inner in items:
        yield from _leaves(inner, (*path, key))


def _show(value: Any) -> str:
    text = str(value) if isinstance(value, str) else repr(value)
    return " ".join(text.split())[:60]
