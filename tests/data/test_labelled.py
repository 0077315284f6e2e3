"""Rows with labels and tags: what is read, in which forms, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunery.data.content import content_hash, question_and_answer
from tunery.data.rows import Row, read_rows
from tunery.errors import DataError

TAGGED = {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}


def values(file: Path) -> list[dict[str, Any]]:
    return [row.value for row in read_rows(str(file))]


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_text_with_a_label_is_a_label_row(tmp_path: Path) -> None:
    file = write(tmp_path, {"text": "a", "label": " spam "}, {"text": "b", "label": 3, "weight": 2}, {"text": "c", "label": True})
    rows = list(read_rows(str(file)))
    assert [row.kind for row in rows] == ["label"] * 3
    assert [(r.value["label"], r.value["weight"]) for r in rows] == [("spam", 1.0), ("3", 2.0), ("true", 1.0)]


def test_a_text_without_a_label_stays_plain_text(tmp_path: Path) -> None:
    assert [r.kind for r in read_rows(str(write(tmp_path, {"text": "a", "label": None})))] == ["text"]


def test_csv_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels, tags = tmp_path / "labels.csv", tmp_path / "tags.csv"
    labels.write_text('text,label,weight\n"a, b",spam,0.5\nc,ham,\n')
    tags.write_text('tokens,tags\n"[""EU"", ""rejects""]","[""B-ORG"", ""O""]"\n')
    assert values(labels) == [{"text": "a, b", "label": "spam", "weight": 0.5}, {"text": "c", "label": "ham", "weight": 1.0}]
    assert values(tags) == [{**TAGGED, "weight": 1.0}]
    pq.write_table(pa.Table.from_pylist([{**TAGGED, "id": 1}]), tmp_path / "tags.parquet")
    assert values(tmp_path / "tags.parquet") == values(tags)


def test_conll_sentences_begin_at_their_line_and_documents_are_no_sentence(tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text("-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\n\nPeter NNP I-NP B-PER\n")
    rows = list(read_rows(str(file)))
    assert [(r.line, r.value["tokens"], r.value["tags"]) for r in rows] == [
        (3, ["EU", "rejects"], ["B-ORG", "O"]),
        (7, ["Peter"], ["B-PER"]),
    ]


def test_conll_with_tabs_keeps_what_stands_between_them(tmp_path: Path) -> None:
    file = tmp_path / "a.conll"
    file.write_text("EU\tB-ORG\nrejects\tO\n")
    assert values(file) == [{**TAGGED, "weight": 1.0}]


def test_a_conll_line_without_a_tag_is_refused_by_its_own_line(tmp_path: Path) -> None:
    file = tmp_path / "a.conll"
    file.write_text("EU B-ORG\nrejects\n")
    with pytest.raises(DataError, match=r"a\.conll:2: this line has one column"):
        list(read_rows(str(file)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "there are 2 tokens and 1 tags"),
        ({"tokens": ["a"]}, "missing column `tags`"),
        ({"tokens": ["a"], "ner_tags": ["O"]}, "rename `ner_tags` to `tags`?"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "`tokens` must be a list, this is text"),
        ({"tokens": ["New York"], "tags": ["O"]}, "token 1 'New York' holds white space"),
        ({"tokens": [], "tags": []}, "`tokens` is empty"),
        ({"tokens": ["a"], "tags": [None]}, "tag 1 must be text or a whole number, this is null"),
        ({"tokens": ["a"], "tags": ["a b"]}, "tag 1 'a b' holds white space"),
        ({"text": "a", "label": ""}, "`label` is empty"),
        ({"text": "a", "label": 0.5}, "`label` must be text or a whole number, this is a number"),
        ({"text": " ", "label": "x"}, "`text` is empty"),
        ({"label": "x"}, "missing column `text`"),
        ({"sentiment": "x", "label": "y"}, "missing column `text`"),
        ({"text": "a", "label": "x", "weight": 0}, "`weight` must be a number above 0, not 0"),
        ({"text": "a", "label": "x", "weight": "much"}, "`weight` must be a number above 0, not much"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: ") as e:
        list(read_rows(str(write(tmp_path, row))))
    assert message in str(e.value)


def test_a_text_is_the_same_under_any_label() -> None:
    one, other = (Row("label", {"text": "a  b", "label": label, "weight": 1.0}, "f", 1) for label in ("x", "y"))
    assert content_hash(one) == content_hash(other)
    assert question_and_answer(one) == ("a  b", "x")
    assert content_hash(one) != content_hash(Row("label", {"text": "a c", "label": "x", "weight": 1.0}, "f", 1))
