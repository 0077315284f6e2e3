"""Entity metrics equal seqeval's on generated tags, and their row statistics add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery.errors import InputError
from tunery.metrics import TextMetric, get, interval, paired
from tunery.metrics.entity_f1 import by_type

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
rows_of_tags = st.lists(
    st.integers(1, 8).flatmap(
        lambda n: st.tuples(*[st.lists(st.sampled_from([*TAGS, "B-ORG"] if side else TAGS), min_size=n, max_size=n) for side in (1, 0)])
    ),
    min_size=1,
    max_size=12,
)


def metric_of(name: str) -> TextMetric:
    metric = get(name)
    assert isinstance(metric, TextMetric)
    return metric


@settings(max_examples=80, deadline=None)
@given(rows_of_tags)
def test_they_are_seqevals(rows: list[tuple[list[str], list[str]]]) -> None:
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    predicted, expected = [p for p, _ in rows], [r for _, r in rows]
    texts = [" ".join(tags) for tags in predicted], [" ".join(tags) for tags in expected]
    own = {"entity_f1": f1_score, "entity_precision": precision_score, "entity_recall": recall_score, "tag_accuracy": accuracy_score}
    for name, theirs in own.items():
        metric = metric_of(name)
        stats = metric.rows(*texts)
        settings_ = {} if name == "tag_accuracy" else {"zero_division": 0}
        assert float(metric.value(stats.sum(axis=0))) == pytest.approx(theirs(expected, predicted, **settings_))
        one_by_one = sum(metric.rows([p], [r]).sum() for p, r in zip(*texts, strict=True))
        assert one_by_one == stats.sum(), "each row counts for itself"


def test_types_are_counted_apart() -> None:
    predictions, references = ["B-PER I-PER O", "B-LOC O"], ["B-PER I-PER B-LOC", "B-PER O"]
    found = by_type(predictions, references)
    assert found["PER"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "expected": 2, "found": 1, "right": 1}
    assert found["LOC"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "expected": 1, "found": 1, "right": 0}


def test_they_have_bounds_and_a_paired_test() -> None:
    references = ["B-PER O", "B-LOC I-LOC", "O O"] * 20
    metric = metric_of("entity_f1")
    before, after = (metric.rows(side, references) for side in (["O B-PER", "B-LOC O", "O O"] * 20, references))
    assert interval(metric, after) == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert paired(metric, before, after)["p_value"] < 0.01
    assert before.shape == after.shape == (60, 9)


def test_another_number_of_tags_is_refused() -> None:
    with pytest.raises(InputError, match="prediction 2 has 1 tags and its reference 2"):
        metric_of("entity_f1").rows(["O", "O"], ["O", "O O"])


def test_nothing_expected_and_nothing_found_is_zero() -> None:
    metric = metric_of("entity_f1")
    assert float(metric.value(metric.rows(["O O"], ["O O"]).sum(axis=0))) == 0.0
    assert np.isfinite(metric.value(np.zeros((4, 3)))).all()
