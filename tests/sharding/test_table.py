"""The page with the measured bytes: its command works, and what it shows is the formula's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launched import finish, start

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^\| `(\w+)` \| (\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", re.MULTILINE)


def lines(text: str) -> list[tuple[str, int, list[int]]]:
    """Stage, processes, and the bytes: weights, formula, state, formula."""
    return [(stage, int(n), [int(value.replace(",", "")) for value in values]) for stage, n, *values in LINE.findall(text)]


def test_the_command_measures(tiny_llama: Path) -> None:
    options = ["--model", str(tiny_llama), "--processes", "2", "--stages", "ddp,zero2,zero3", "--methods", "full"]
    code, out, err = finish(start([str(ROOT / "bench" / "sharding.py"), *options]))
    assert code == 0, err[-3000:]
    whole, second, third = lines(out)
    assert [found[0] for found in (whole, second, third)] == ["ddp", "zero2", "zero3"]
    for _, _, (weights, formula, state, state_formula) in (whole, second, third):
        assert weights == pytest.approx(formula, rel=0.01)
        assert state == pytest.approx(state_formula, rel=0.01)
    assert third[2][0] < 0.51 * whole[2][0]


def test_the_page_shows_what_the_formula_says() -> None:
    found = lines((ROOT / "docs" / "sharding.md").read_text(encoding="utf-8"))
    assert len(found) == 2 * 5 * 3  # methods, stages, numbers of processes
    assert {(stage, n) for stage, n, _ in found} == {(stage, n) for stage in ("ddp", "zero1", "zero2", "zero3", "fsdp") for n in (1, 2, 4)}
    for _, _, (weights, formula, state, state_formula) in found:
        assert weights == pytest.approx(formula, rel=0.01)
        assert state == pytest.approx(state_formula, rel=0.01)
