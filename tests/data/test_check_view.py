from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tunery.cli.check_view import show
from tunery.data.check import check
from tunery.data.render import Renderer
from tunery.recipe import Data

Write = Callable[..., Path]
Make = Callable[[str], Renderer]


@pytest.fixture
def shown(tmp_path: Path, renderer: Make) -> Callable[..., str]:
    def shown(colour: bool = False, **data: object) -> str:
        from rich.console import Console

        result = check(Data.model_validate(data), renderer("smollm2"), 500, 1000, 0, tmp_path, tmp_path / "cache")
        console = Console(file=io.StringIO(), width=100, force_terminal=colour, color_system="standard" if colour else None)
        show(result, console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    return shown


def lines(count: int, answer: str = "cold water") -> str:
    rows = (
        {"messages": [{"role": "user", "content": f"question {n * 7919 % 10007}"}, {"role": "assistant", "content": answer}]}
        for n in range(count)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_table_the_lengths_and_the_samples(write: Write, shown: Callable[..., str]) -> None:
    write("train.jsonl", lines(30) + lines(2))
    text = shown(train="train.jsonl", test=0.25)
    table = {line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]] for line in text.splitlines() if line.startswith("│")}
    assert [sum(int(n) for n in table["rows"]), table["rows also in train"]] == [32, ["–", "0"]]
    assert {"tokens", "supervised tokens", "truncated rows", "duplicate rows", "near-duplicates of train"} <= set(table)
    assert "█" in text
    assert text.count("cold water<|im_end|>") == 3
    assert "<|im_start|>assistant" in text
    assert "The data is good." in text


def test_what_is_learned_is_green_and_the_rest_is_dim(write: Write, shown: Callable[..., str]) -> None:
    write("train.jsonl", lines(1))
    text = shown(colour=True, train="train.jsonl")
    assert "\x1b[1;32mcold water<|im_end|>\x1b[0m" in text
    assert "\x1b[2m<|im_start|>" in text


def test_problems_are_listed_by_place_on_one_line_each(write: Write, shown: Callable[..., str], tmp_path: Path) -> None:
    write("train.jsonl", lines(3) + "{\n" * 25)
    text = shown(train="train.jsonl")
    assert "25 problems: training would refuse this data." in text
    assert f"  {tmp_path / 'train.jsonl'}:4: not valid JSON" in text
    assert all("write one complete JSON object on this line" in line for line in text.splitlines() if "not valid JSON" in line)
    assert "… and 5 more" in text
    assert "The data is good." not in text


def test_nothing_but_problems(shown: Callable[..., str]) -> None:
    text = shown(train="missing.jsonl")
    assert "1 problem: training would refuse this data." in text
    assert "there is no such file" in text


def test_text_in_rows_is_no_markup_and_no_terminal_command(write: Write, shown: Callable[..., str]) -> None:
    write("train.jsonl", lines(1, answer="[bold]x[/bold] \x1b[31mred " + "long " * 600))
    text = shown(train="train.jsonl", max_truncated=1)
    assert "[bold]x[/bold]" in text
    assert "\x1b" not in text
    assert "middle left out" in text
