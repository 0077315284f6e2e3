"""What a head chooses, word by word and text by text, and what is reached without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from tunery import tasks
from tunery.data.rows import Row
from tunery.errors import DataError
from tunery.evaluate import baselines, by_head, compare
from tunery.models.heads import Head
from tunery.models.load import load_tokenizer
from tunery.progress import Quiet
from tunery.recipe import Named

LABELS = ("B-X", "I-X", "O")


class Certain:
    """An engine that is sure of one class for each token id, or for the first one."""

    name, context = "certain", 64

    def __init__(self, kind: Literal["sequence", "token"], labels: tuple[str, ...]) -> None:
        self.head = Head(kind, labels)

    def logits(self, sequences: Sequence[Any]) -> list[np.ndarray]:
        found = []
        for s in sequences:
            scores = np.eye(len(self.head.labels), dtype=np.float32)[s.tokens % len(self.head.labels)] * 4
            found.append(scores if self.head.kind == "token" else scores[1])
        return found


def renderer_of(folder: Path, name: str, labels: tuple[str, ...]) -> Any:
    task, options = tasks.of(Named(name=name, options={"labels": list(labels)}))
    return task.renderer(load_tokenizer(folder), options)


def tagged(words: list[str], tags: list[str], weight: float = 1.0) -> Row:
    return Row("tags", {"tokens": words, "tags": tags, "weight": weight}, "f", 1)


def labelled(text: str, label: str) -> Row:
    return Row("label", {"text": text, "label": label, "weight": 1.0}, "f", 1)


def test_each_word_gets_the_tag_of_its_first_piece(tiny_bert: Path) -> None:
    own = renderer_of(tiny_bert, "tag", LABELS)
    words = ["The", "cat", "Yorkshire"]
    (line,) = by_head.lines(Certain("token", LABELS), own, [tagged(words, ["B-X", "I-X", "O"])], 64, Quiet(), "")
    ids, places = own.placed(words)
    expected = [LABELS[ids[p] % 3] for p in places]
    assert line["prediction"].split() == expected
    chances = np.exp([4, 0, 0]) / np.exp([4, 0, 0]).sum()
    nll = [-np.log(chances[0 if a == b else 1]) for a, b in zip(expected, ["B-X", "I-X", "O"], strict=True)]
    assert line["nll"] == pytest.approx(sum(nll))
    assert (line["tokens"], line["lost_words"]) == (3.0, 0)


def test_words_that_are_cut_off_are_predicted_untagged_and_counted(tiny_bert: Path) -> None:
    own = renderer_of(tiny_bert, "tag", LABELS)
    row = tagged(["the", "cat", "reads", "a", "book"], ["O", "O", "O", "O", "B-X"])
    (line,) = by_head.lines(Certain("token", LABELS), own, [row], 4, Quiet(), "")
    assert line["lost_words"] == 3
    assert line["prediction"].split()[2:] == ["O", "O", "O"]
    assert line["tokens"] == 2.0
    evaluation = compare.compare(("entity_recall", "loss"), [line], [line], ())
    assert evaluation["lost_words"] == 3
    assert evaluation["after"]["entity_recall"]["value"] == 0.0, "the entity that was cut off is not forgiven"
    assert evaluation["entities"]["X"]["expected"] == 1


def test_a_text_gets_one_label_with_its_probability(tiny_bert: Path) -> None:
    own = renderer_of(tiny_bert, "classify", ("a", "b"))
    rows = [labelled("the cat", "a"), labelled("a river", "b")]
    found = by_head.lines(Certain("sequence", ("a", "b")), own, rows, 64, Quiet(), "")
    for line, row in zip(found, rows, strict=True):
        first = own.encode([row.value["text"]])[0].ids[1]
        assert line["prediction"] == "ab"[first % 2]
        assert line["probability"] == pytest.approx(1 / (1 + np.exp(-4)))
        assert line["nll"] == pytest.approx(np.log1p(np.exp(-4)) + 4 * (line["prediction"] != row.value["label"]))


def test_an_unknown_label_in_the_test_rows_is_refused(tiny_bert: Path) -> None:
    own = renderer_of(tiny_bert, "classify", ("a", "b"))
    with pytest.raises(DataError, match="the label `c` is not one of"):
        by_head.lines(Certain("sequence", ("a", "b")), own, [labelled("the cat", "c")], 64, Quiet(), "")


def test_metrics_are_the_tasks_own_and_bits_per_byte_is_for_text() -> None:
    lines = [{"reference": "a", "prediction": "b", "nll": 1.0, "tokens": 1.0}] * 3
    assert compare.chosen_metrics(None, lines, ("accuracy", "macro_f1")) == ("accuracy", "macro_f1", "loss")
    assert compare.labels_of(lines, ("a", "b", "c")) == ("a",)
    assert compare.labels_of(lines, ()) is None


def measured(task: str, train: list[Row], test: list[Row], names: tuple[str, ...], labels: Any, renderer: Any = None) -> dict[str, Any]:
    lines = [{"prediction": "", "reference": " ".join(r.value["tags"]) if r.kind == "tags" else r.value["label"]} for r in test]
    return dict(baselines.measure(tasks.get(task), renderer, iter(train), test, lines, names, labels, Quiet()))


def test_baselines_of_labels() -> None:
    train = [labelled(f"{word} {n}", label) for n in range(12) for word, label in (("good", "yes"), ("bad", "no"), ("awful", "no"))]
    test = [labelled("good thing", "yes"), labelled("awful thing", "no"), labelled("bad thing", "no"), labelled("good one", "yes")]
    found = measured("classify", train, test, ("accuracy", "loss"), ("no", "yes"))
    assert found["majority"]["accuracy"]["value"] == 0.5
    assert found["tfidf_logistic_regression"]["accuracy"]["value"] == 1.0
    assert set(found["majority"]) == {"accuracy"}


def test_baseline_of_tags_is_each_words_most_common_tag(tiny_bert: Path) -> None:
    own = renderer_of(tiny_bert, "tag", LABELS)
    train = [tagged(["Rome", "is"], ["B-X", "O"])] * 2 + [tagged(["Rome", "is"], ["O", "O"])]
    found = measured("tag", train, [tagged(["Rome", "falls"], ["B-X", "O"])], ("entity_f1", "tag_accuracy"), None, own)
    assert found == {"majority": {name: {"value": 1.0, "low": 1.0, "high": 1.0} for name in ("entity_f1", "tag_accuracy")}}


def test_baseline_of_free_text_is_the_question_itself() -> None:
    test = [Row("completion", {"prompt": q, "completion": a}, "f", 1) for q, a in (("same", "same"), ("one", "other"))]
    lines = [{"prediction": "", "reference": row.value["completion"]} for row in test]
    found = baselines.measure(tasks.get("chat"), None, iter(test), test, lines, ("exact_match", "loss"), None, Quiet())
    assert found["copy_source"]["exact_match"]["value"] == 0.5
    assert set(found) == {"copy_source"}


def test_one_label_in_training_leaves_only_the_majority() -> None:
    train, test = [labelled("a", "yes")] * 3, [labelled("b", "no")]
    assert set(measured("classify", train, test, ("accuracy",), ("no",))) == {"majority"}
