"""Rows that are too long to be asked, or of which cutting leaves nothing: said before training, not after it."""

import json
from pathlib import Path

import pytest

from tunery.data.prepare import prepare
from tunery.data.render import Renderer
from tunery.errors import DataError
from tunery.models.load import load_tokenizer
from tunery.recipe import Data


def line(question: str) -> str:
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]}) + "\n"


def write(folder: Path, train: list[str], other: list[str]) -> None:
    (folder / "train.jsonl").write_text("".join(map(line, train)))
    (folder / "other.jsonl").write_text("".join(map(line, other)))


def test_a_test_prompt_beyond_the_context_is_refused_by_line(tiny_llama: Path, tmp_path: Path) -> None:
    write(tmp_path, ["the cat"], ["a river", "the river " * 400])
    data = Data(train="train.jsonl", test="other.jsonl", max_truncated=1.0)
    with pytest.raises(DataError, match=r"other\.jsonl:2: the prompt of this test row has \d+ tokens and the model's context is 200"):
        prepare(data, Renderer(load_tokenizer(tiny_llama)), 200, 200, 0, tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_part_that_cutting_empties_is_refused(tiny_llama: Path, tmp_path: Path, part: str) -> None:
    write(tmp_path, ["the cat"], ["the river " * 100])
    data = Data.model_validate({"train": "train.jsonl", part: "other.jsonl", "max_truncated": 1.0})
    with pytest.raises(DataError, match=f"every {part} row is cut before its answer"):
        prepare(data, Renderer(load_tokenizer(tiny_llama)), 100, 1024, 0, tmp_path, tmp_path / "cache")
