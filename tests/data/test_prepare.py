from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunery.data.check import SHOWN, CheckResult, check
from tunery.data.prepare import Prepared, prepare
from tunery.data.render import Renderer
from tunery.data.rows import read_rows
from tunery.data.stats import histogram
from tunery.errors import DataError, InputError
from tunery.recipe import Data

Write = Callable[..., Path]
Make = Callable[[str], Renderer]

WORDS = ["cat", "river", "friend", "model", "house", "teacher", "garden", "train", "book", "question", "water", "song", "number", "tree"]


def row(question: str, answer: str = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def questions(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{n}: " + " ".join(rng.choice(WORDS) + rng.choice("abcdefgh") for _ in range(9)) for n in range(count)]


def prepared(renderer: Renderer, tmp_path: Path, max_length: int = 500, seed: int = 0, **data: Any) -> Prepared:
    return prepare(Data.model_validate(data), renderer, max_length, 1000, seed, tmp_path, tmp_path / "cache")


def checked(renderer: Renderer, tmp_path: Path, max_length: int = 500, **data: Any) -> CheckResult:
    return check(Data.model_validate(data), renderer, max_length, 1000, 0, tmp_path, tmp_path / "cache")


def test_every_figure_is_counted(write: Write, renderer: Make, tmp_path: Path) -> None:
    r = renderer("smollm2")
    q = questions(40)
    write("train.jsonl", [row(x) for x in q[:30]] + [row(q[0]), row(f" {q[1]}  ")])  # two rows are there twice
    write("valid.jsonl", [row(x) for x in q[28:33]])
    write("test.jsonl", [row(x) for x in [*q[34:40], q[2], q[32]]])
    p = prepared(r, tmp_path, train="train.jsonl", valid="valid.jsonl", test="test.jsonl")
    sequences = [s for x in read_rows("train.jsonl", tmp_path) for s in r.sequences(x)]
    assert p.stats.report() == {
        "train_rows": 32,
        "trained_tokens": sum(len(s.tokens) for s in sequences),
        "supervised_tokens": sum(int((s.weights > 0).sum()) for s in sequences),
        "truncated_rows": 0,
        "dropped_rows": 0,
        "duplicate_rows": 2,
        "leaked_rows": 2,  # one of train, one of valid
    }
    assert p.stats.shared == {"train/valid": 2, "train/test": 1, "valid/test": 1}
    assert {name: s.rows for name, s in p.stats.splits.items()} == {"train": 32, "valid": 5, "test": 8}
    assert [x.value["messages"][0]["content"] for x in p.test] == [*q[34:40], q[2], q[32]]
    assert p.valid is not None
    assert len(p.valid) == 5
    assert sum(n for _, _, n in p.stats.splits["train"].histogram) == 32
    assert p.stats.splits["train"].longest == max(len(s.tokens) for s in sequences)
    assert set(p.stats.sources) == {str(tmp_path / n) for n in ("train.jsonl", "valid.jsonl", "test.jsonl")}
    assert list(p.training_texts())[:2] == [f"{q[0]}\nyes", f"{q[1]}\nyes"]
    json.dumps(p.stats.as_json())


def test_shares_are_dealt_by_content_and_seed(write: Write, renderer: Make, tmp_path: Path) -> None:
    r = renderer("smollm2")
    q = questions(200)
    write("train.jsonl", [row(x) for x in q + q[:50]])
    one = prepared(r, tmp_path, train="train.jsonl", valid=0.1, test=0.2)
    assert one.stats.leaked_rows == 0
    assert set(one.stats.shared.values()) == {0}
    assert one.stats.train_rows + one.stats.splits["valid"].rows + len(one.test) == 250
    assert 50 <= len(one.test) <= 51
    asked = {x.value["messages"][0]["content"] for x in one.test}
    assert not asked & {t.split("\n")[0] for t in one.training_texts()}
    assert asked == {x.value["messages"][0]["content"] for x in prepared(r, tmp_path, train="train.jsonl", valid=0.1, test=0.2).test}
    assert asked != {
        x.value["messages"][0]["content"] for x in prepared(r, tmp_path, seed=1, train="train.jsonl", valid=0.1, test=0.2).test
    }


def test_weighted_sources_are_shown_as_often_as_their_weight(write: Write, renderer: Make, tmp_path: Path) -> None:
    r = renderer("smollm2")
    write("a.jsonl", [row(x) for x in questions(10)])
    write("b.jsonl", [row(x) for x in questions(20, seed=1)])
    p = prepared(r, tmp_path, train=[{"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl", "weight": 0.5}])
    assert len(p.train) == 30
    assert p.stats.train_rows == 20  # distinct rows
    assert p.stats.trained_tokens == p.train.lengths.sum()
    assert np.bincount(p.train.rows, minlength=30)[:10].tolist() == [2] * 10
    # a share is dealt over all sources, and a row set aside is in no epoch
    held = prepared(r, tmp_path, train=[{"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl", "weight": 1}], test=0.2)
    assert len(held.test) == 6
    shown = {held.train.where(int(n)) for n in held.train.rows}
    assert not shown & {(t.source, t.line) for t in held.test}
    assert len(shown) == 24


def test_samples_show_what_is_learned(write: Write, renderer: Make, tmp_path: Path) -> None:
    r = renderer("smollm2")
    write("train.jsonl", [row(x, "cold water") for x in questions(5)])
    p = prepared(r, tmp_path, train="train.jsonl")
    samples = p.samples(3, seed=1)
    assert len({s.line for s in samples}) == 3
    for s in samples:
        assert s.source == str(tmp_path / "train.jsonl")
        assert [w for _, w in s.stretches] == [0, 1, 0]
        assert [t for t, _ in s.stretches][1:] == ["cold water<|im_end|>", "\n"]
        assert f"{s.line - 1}: " in s.stretches[0][0]
    assert len(p.samples(99)) == 5


# ---- what is refused, by train and by check alike ----


def refused_by_both(renderer: Renderer, tmp_path: Path, max_length: int = 500, **data: Any) -> list[DataError]:
    """The problems that check lists; train raises the first of them."""
    result = checked(renderer, tmp_path, max_length, **data)
    with pytest.raises(DataError) as caught:
        prepared(renderer, tmp_path, max_length, **data)
    assert not result.good
    assert str(caught.value) == str(result.problems[0])
    assert result.problem_count >= len(result.problems)
    return result.problems


def test_good_data_is_good(write: Write, renderer: Make, tmp_path: Path) -> None:
    write("train.jsonl", [row(x) for x in questions(10)])
    result = checked(renderer("smollm2"), tmp_path, train="train.jsonl", valid=0.2)
    assert result.good
    assert json.loads(json.dumps(result.report()))["good"] is True


def test_a_row_longer_than_the_context_is_refused_when_cutting_is_off(write: Write, renderer: Make, tmp_path: Path) -> None:
    r = renderer("smollm2")
    q = questions(5)
    write("train.jsonl", [row(q[0]), row("cat " * 2000), row(q[1]), row("cat " * 3000), row(q[2])])
    problems = refused_by_both(r, tmp_path, 1000, train="train.jsonl", max_truncated=0)
    assert [p.line for p in problems] == [2, 4]
    length = len(r.sequences(next(x for x in read_rows("train.jsonl", tmp_path) if x.line == 2))[0].tokens)
    expected = (
        f"this train row has {length} tokens, train.max_length is 1000, and cutting is off; shorten them: the model's context is 1000"
    )
    assert problems[0].message.startswith(expected)


def test_more_cut_rows_than_allowed_are_refused_with_the_counts(write: Write, renderer: Make, tmp_path: Path) -> None:
    r = renderer("smollm2")
    write("train.jsonl", [row(x) for x in questions(48)] + [row("x", "cat " * 600), row("cat " * 600)])
    (problem,) = refused_by_both(r, tmp_path, 300, train="train.jsonl")
    assert problem.line == 49
    expected = "2 of 50 train rows (4.0%), this the first, are longer than train.max_length (300 tokens), more than data.max_truncated allows (1.0%)"
    assert problem.message.startswith(expected)
    assert "raise train.max_length (the model's context is 1000), or raise data.max_truncated" in problem.message
    allowed = prepared(r, tmp_path, 300, train="train.jsonl", max_truncated=0.04)
    assert allowed.stats.truncated_rows == 2
    assert allowed.stats.dropped_rows == 1  # of the second nothing learned is left
    assert allowed.stats.train_rows == 49
    assert allowed.stats.splits["train"].longest > 300


def test_long_text_is_no_truncation(write: Write, renderer: Make, tmp_path: Path) -> None:
    r = renderer("smollm2")
    write("train.jsonl", [{"text": "the cat sees a river. " * 300}])
    p = prepared(r, tmp_path, 100, train="train.jsonl", max_truncated=0)
    assert (p.stats.train_rows, p.stats.truncated_rows, p.stats.dropped_rows) == (1, 0, 0)
    assert len(p.train) > 10
    (sequence,) = r.sequences(next(read_rows("train.jsonl", tmp_path)))
    assert p.stats.supervised_tokens == len(sequence.tokens) - 1


@pytest.mark.parametrize("side", ["train", "valid", "test"])
def test_a_wrong_row_on_any_side_is_refused(write: Write, renderer: Make, tmp_path: Path, side: str) -> None:
    files: dict[str, Any] = {name: f"{name}.jsonl" for name in ("train", "valid", "test")}
    for n, name in enumerate(files):
        write(files[name], "".join(json.dumps(row(x)) + "\n" for x in questions(3, n)) + ("{\n" if name == side else ""))
    (problem,) = refused_by_both(renderer("smollm2"), tmp_path, **files)
    assert str(problem).startswith(f"{tmp_path / files[side]}:4: not valid JSON")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": "missing.jsonl"}, "there is no such file"),
        ({"train": "empty.jsonl"}, "there are no rows in it"),
        ({"train": "same.jsonl", "test": 0.5}, "too few different rows to set 50% aside for test"),
        ({"train": "good.jsonl", "valid": 0.6, "test": 0.6}, "valid and test together take all rows"),
    ],
)
def test_data_without_rows_to_train_on(write: Write, renderer: Make, tmp_path: Path, data: dict[str, Any], message: str) -> None:
    write("good.jsonl", [row(x) for x in questions(10)])
    write("empty.jsonl", "")
    write("same.jsonl", [row("a")] * 4)
    problems = refused_by_both(renderer("smollm2"), tmp_path, **data)
    assert message in str(problems[0])


def test_rows_of_a_kind_that_the_task_does_not_take(write: Write, renderer: Make, tmp_path: Path) -> None:
    write("train.jsonl", [{"text": "a river"}])
    with pytest.raises(DataError, match=r"train\.jsonl:1: the recipe's task takes chat or completion rows, these are text rows"):
        prepare(Data(train="train.jsonl"), renderer("smollm2"), 100, 100, 0, tmp_path, tmp_path / "cache", kinds=("chat", "completion"))


def test_a_template_that_cannot_serve_ends_the_check(write: Write, renderer: Make, tmp_path: Path) -> None:
    write("train.jsonl", [row("a")])
    with pytest.raises(InputError, match="no chat template"):
        checked(renderer("base"), tmp_path, train="train.jsonl")


def test_many_problems_are_counted_and_the_first_are_listed(write: Write, renderer: Make, tmp_path: Path) -> None:
    write("train.jsonl", "{\n" * 1500 + json.dumps(row("a")))
    result = checked(renderer("smollm2"), tmp_path, train="train.jsonl")
    assert result.problem_count == 1500
    assert [p.line for p in result.problems] == list(range(1, SHOWN + 1))
    assert result.prepared.stats.train_rows == 1


def test_near_duplicates_are_counted_by_side(write: Write, renderer: Make, tmp_path: Path) -> None:
    q = questions(60)
    write("train.jsonl", [row(x) for x in [*q[:40], q[0] + "s", q[1] + "s", q[2]]])
    write("test.jsonl", [row(x) for x in [*q[40:], q[3] + "s", q[4]]])
    near = checked(renderer("smollm2"), tmp_path, train="train.jsonl", test="test.jsonl").prepared.stats.near_duplicates
    assert near is not None
    assert near.rows == {"train": 2, "test": 0}
    assert near.across == {"train/test": 1}
    assert near.examined == 63  # exact duplicates are counted elsewhere
    first, second, jaccard = near.examples[0]
    assert (first, second) == (f"{tmp_path / 'train.jsonl'}:4", f"{tmp_path / 'test.jsonl'}:21")
    assert 0.8 <= jaccard < 1
    assert prepared(renderer("smollm2"), tmp_path, train="train.jsonl").stats.near_duplicates is None


def test_progress_is_told_in_words(write: Write, renderer: Make, tmp_path: Path) -> None:
    told: list[tuple[float, float | None, str]] = []
    write("train.jsonl", [row(x) for x in questions(10)])
    data = Data(train="train.jsonl")
    prepare(data, renderer("smollm2"), 500, 1000, 0, tmp_path, tmp_path / "cache", progress=lambda *say: told.append(say))
    assert {what for _, _, what in told} == {"tokenise train.jsonl"}
    assert all(total is not None and done <= total for done, total, _ in told)
    assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize("lengths", [[1], [3, 3, 3], list(range(1, 5000)), [7, 100_000], [0, 11, 12]])
def test_the_histogram_holds_every_length(lengths: list[int]) -> None:
    bins = histogram(np.array(lengths))
    assert len(bins) <= 12
    for low, high, count in bins:
        assert count == sum(low <= n <= high for n in lengths)
    assert sum(count for _, _, count in bins) == len(lengths)
    assert len({high - low for low, high, _ in bins}) == 1
