"""The combination table for people: every cell counted into one entry a pair of choices, with its numbered reasons, as Markdown or plain data.

An entry says `yes` when every cell of the pair that is not refused has been walked, `3/8` when only so many have, `untested` when none has,
`fails 2/8` when so many failed, and `no` when all are refused. A number in brackets is the reason, listed below the table; beside anything
but `no` it means that some cells of the pair are refused for that reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tunery import __version__
from tunery.combinations import Rule, cells, part, refusal_of, values
from tunery.combinations.options import described
from tunery.combinations.walked import ARCHITECTURES, status_of, walked
from tunery.refusal import AXES

SHOWN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("method", ("task",)),
    ("method", ("sharding",)),
    ("method", ("export",)),
    ("method", ("precision", "device", "model")),
    ("task", ("sharding",)),
    ("task", ("export", "precision", "model")),
    ("sharding", ("export", "precision", "model")),
)
"""The tables: the axis of the rows and the axes of the columns."""

TABLES: Mapping[str, tuple[str, ...]] = {
    row: tuple(axis for other, columns in SHOWN if other == row for axis in columns) for row in ("method", "task", "sharding")
}

WALKED_ON = "cpu"
"""The device that the counts of every column but the device's own are about."""


@dataclass
class Entry:
    """All cells with two given values: how many are allowed, how many of these were walked or failed, and why the others are refused."""

    allowed: int = 0
    walked: int = 0
    failed: int = 0
    oldest: str = ""
    rules: dict[int, Rule] = field(default_factory=dict)
    """The rules that refuse some of the cells, by the number of their note."""

    @property
    def text(self) -> str:
        """`yes`, `3/8`, `untested`, `fails 2/8` or `no`, without the notes."""
        if not self.allowed:
            return "no"
        if self.failed:
            return f"fails {self.failed}/{self.allowed}"
        if not self.walked:
            return "untested"
        return "yes" if self.walked == self.allowed else f"{self.walked}/{self.allowed}"

    @property
    def shown(self) -> str:
        """With the numbers of its notes: `no (1, 3)`."""
        return f"{self.text} ({', '.join(map(str, sorted(self.rules)))})" if self.rules else self.text


@dataclass(frozen=True)
class Note:
    """One reason, for all the rules that share it."""

    number: int
    rules: tuple[Rule, ...]

    @property
    def reason(self) -> str:
        return self.rules[0].refusal.reason

    @property
    def line(self) -> str:
        """`prefix, prompt with export merged: because (source); instead `…``."""
        first = self.rules[0]
        who = ", ".join(dict.fromkeys(r.part for r in self.rules))
        others = [f"{axis} {' or '.join(names)}" for axis, names in first.when.items() if axis != first.axis and names]
        return f"{who} with {' and '.join(others)}: {self.reason} ({first.refusal.source}). Instead: `{first.refusal.instead}`"


@dataclass(frozen=True)
class Table:
    """Every entry by (axis, value, axis, value), the first axis being one of `TABLES`; and the notes in the order of their numbers."""

    entries: Mapping[tuple[str, str, str, str], Entry]
    notes: tuple[Note, ...]


@cache
def table() -> Table:
    """Count every cell once."""
    entries: dict[tuple[str, str, str, str], Entry] = {}
    refused: dict[tuple[str, str, str, str], dict[int, Rule]] = {}
    numbers: dict[tuple[Any, ...], int] = {}
    of_note: dict[int, list[Rule]] = {}
    known = walked()
    for cell in cells():
        rule = refusal_of(cell)
        number = 0
        if rule is not None:
            # Parts that give the same reason for the same thing (prompt, prefix and P-tuning, say) share one note.
            others = tuple((axis, names) for axis, names in rule.when.items() if axis != rule.axis)
            number = numbers.setdefault((rule.axis, others, rule.refusal.reason), len(numbers) + 1)
            rules = of_note.setdefault(number, [])
            if rule not in rules:
                rules.append(rule)
            status, version = "no", ""
        else:
            status, version = status_of(cell, known)
        for row, columns in TABLES.items():
            for column in columns:
                if cell["device"] != WALKED_ON and column != "device":
                    continue
                key = (row, cell[row], column, cell[column])
                entry = entries.setdefault(key, Entry())
                if rule is not None:
                    refused.setdefault(key, {})[number] = rule
                    continue
                entry.allowed += 1
                entry.walked += status == "yes"
                entry.failed += status == "fails"
                if version:
                    entry.oldest = min(entry.oldest or version, version)
    for key, why in refused.items():
        row, _, column, _ = key
        # A cell is also refused because of a third choice; that is said where that choice stands, not here.
        own = {n: rule for n, rule in why.items() if row in rule.when and column in rule.when}
        entries[key].rules = own or ({} if entries[key].allowed else why)
    return Table(entries, tuple(Note(n, tuple(rules)) for n, rules in sorted(of_note.items())))


def legend() -> str:
    """What the words in the table mean, as a Markdown list."""
    found = table()
    oldest = min((e.oldest for e in found.entries.values() if e.oldest), default="")
    with_version = f" with Tunery {oldest}{'' if oldest == __version__ else ' or later'}" if oldest else ""
    architectures = "; ".join(f"{kind}s: {', '.join(names)}" for kind, names in ARCHITECTURES.items())
    lines = (
        "An entry is about a pair of choices; its *cells* are all recipes with both of them, one for each choice on every other axis.",
        f"- `yes`: every cell was walked{with_version}: trained, saved, loaded again, compared and exported, on a tiny model of each "
        f"architecture ({architectures}).",
        "- `3/8`: three of its eight cells were walked, the others are untested.",
        "- `untested`: nothing refuses it, and none of its cells was walked; it may work.",
        "- `fails 2/8`: two of its eight cells were tried and failed.",
        "- `no (4)`: refused by `tunery check`, before anything is loaded, for reason 4 of the list below the tables.",
        "- a number beside another word, `yes (4)`: some recipes with this pair are refused for that reason; they are not counted.",
    )
    return "\n".join((lines[0], "", *lines[1:], "", "Every column but `cuda` counts cells on the CPU."))


def markdown(row: str, axes: Sequence[str]) -> str:
    """One table in Markdown: `row` is `method`, `task` or `sharding`, the columns are the values of the other axes."""
    columns = [(axis, value) for axis in axes for value in values()[axis]]
    entries = table().entries
    lines = [
        [row, *(value for _, value in columns)],
        ["---"] * (len(columns) + 1),
        *([f"`{name}`", *(entries[row, name, *column].shown for column in columns)] for name in values()[row]),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def notes() -> list[str]:
    """The numbered reasons, as Markdown."""
    return [f"{note.number}. {note.line}" for note in table().notes]


def in_full() -> str:
    """Everything that `tunery methods` says, in Markdown."""
    blocks = ["## Methods", _listed("method")]
    for axis, title in (("task", "Tasks"), ("sharding", "Shardings"), ("export", "Exports")):
        blocks += [f"## {title}", _listed(axis)]
    blocks += ["## What goes with what", legend()]
    blocks += [markdown(row, axes) for row, axes in SHOWN]
    if table().notes:
        blocks += ["Reasons:", "\n".join(notes())]
    return "\n\n".join(blocks) + "\n"


def _listed(axis: str) -> str:
    if axis == "method":
        lines = [["method", "what it does", "learning rate", "why", "trains", "merges"], ["---"] * 6]
        for m in as_data()["methods"]:
            lines.append(
                [f"`{m['name']}`", m["summary"], f"{m['learning_rate']:g}", m["reason"], m["trains"], "yes" if m["merges"] else "no"]
            )
    else:
        lines = [[axis, "what it does"], ["---"] * 2, *([f"`{p['name']}`", p["summary"]] for p in as_data()[f"{axis}s"])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_method(name: str) -> str:
    """Everything about one method, in Markdown. Raises InputError for an unknown one."""
    method = one_method(name)
    facts = [
        f"- learning rate: {method['learning_rate']:g}, {method['reason']}",
        f"- trains: {method['trains']}",
        f"- can be merged into its base: {'yes' if method['merges'] else 'no'}",
    ]
    options = [["option", "default", "meaning, and why this default"], ["---"] * 3]
    options += [[f"`{o['name']}`", f"`{o['default']}`", o["description"].replace("|", "\\|")] for o in method["options"]]
    blocks = [f"# {name}", f"{method['summary'][:1].upper()}{method['summary'][1:]}.", "\n".join(facts)]
    if method["options"]:
        blocks += ["\n".join(f"| {' | '.join(line)} |" for line in options)]
    else:
        blocks += ["It has no options."]
    combined = [["axis", "goes with"], ["---"] * 2]
    for axis in TABLES["method"]:
        combined.append([axis, ", ".join(f"{value}: {method['combines'][axis][value]['shown']}" for value in values()[axis])])
    blocks += ["\n".join(f"| {' | '.join(line)} |" for line in combined), legend()]
    used = {n for axis in method["combines"].values() for entry in axis.values() for n in entry["notes"]}
    lines = [f"{note.number}. {note.line}" for note in table().notes if note.number in used]
    if lines:
        blocks += ["Reasons:", "\n".join(lines)]
    return "\n\n".join(blocks) + "\n"


def one_method(name: str) -> dict[str, Any]:
    """A method with its options, what it combines with, and why not with others, as plain data. Raises InputError for an unknown name."""
    method = part("method", name)
    rate, reason = method.LEARNING_RATE
    return {
        "name": name,
        "summary": method.SUMMARY,
        "learning_rate": rate,
        "reason": reason,
        "trains": _trains(method),
        "merges": method.MERGES,
        "options": described(method.Options),
        "combines": {axis: {v: _entry("method", name, axis, v) for v in values()[axis]} for axis in TABLES["method"]},
    }


def _trains(method: Any) -> str:
    if method.SAVES == "weights":
        return "the base's own weights"
    return "an adapter, and weights of the base" if method.TRAINS_BASE else "an adapter; the base is frozen"


def _entry(row: str, name: str, column: str, value: str) -> dict[str, Any]:
    entry = table().entries[row, name, column, value]
    return {
        "status": entry.text,
        "shown": entry.shown,
        "cells": entry.allowed,
        "walked": entry.walked,
        "failed": entry.failed,
        "version": entry.oldest or None,
        "notes": sorted(entry.rules),
    }


@cache
def as_data() -> dict[str, Any]:
    """All of it as plain data: the parts, the table, the reasons."""

    def listed(axis: str) -> list[dict[str, Any]]:
        return [
            {"name": name, "summary": part(axis, name).SUMMARY, "options": described(part(axis, name).Options)} for name in values()[axis]
        ]

    pairs = {row: {name: _pairs(row, name) for name in values()[row]} for row in TABLES}
    return {
        "version": __version__,
        "axes": {axis: list(values()[axis]) for axis in AXES},
        "methods": [one_method(name) for name in values()["method"]],
        "tasks": listed("task"),
        "shardings": listed("sharding"),
        "exports": listed("export"),
        "table": pairs,
        "refusals": [_note(note) for note in table().notes],
    }


def _pairs(row: str, name: str) -> dict[str, Any]:
    return {column: {value: _entry(row, name, column, value) for value in values()[column]} for column in TABLES[row]}


def _note(note: Note) -> dict[str, Any]:
    first = note.rules[0].refusal
    return {
        "number": note.number,
        "axis": note.rules[0].axis,
        "parts": _unique(r.part for r in note.rules),
        "when": {axis: list(names) for axis, names in note.rules[0].when.items() if axis != note.rules[0].axis},
        "reason": first.reason,
        "source": first.source,
        "instead": first.instead,
    }


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
