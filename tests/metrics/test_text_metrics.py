"""Every text metric equals the library or the published script that defines it, on generated texts."""

from __future__ import annotations

import re
import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery.errors import InputError
from tunery.metrics import LikelihoodMetric, TextMetric, entity_f1, get, names
from tunery.metrics.classification import confusion

WORDS = ["the", "cat", "sat", "on", "a", "mat", "Mat.", "an", "owl,", "naïve", "猫", "42", "", "x-y", "don't"]
texts = st.lists(st.sampled_from(WORDS), min_size=0, max_size=8).map(" ".join)
LABELS = ["news", "sport", "tech"]
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=12)


OF_TAGS = {metric.name for metric in entity_f1.METRICS}
TEXT_METRICS = [name for name in names() if isinstance(get(name), TextMetric)]


def text_metric(name: str, labels: list[str] | None = None) -> TextMetric:
    metric = get(name, labels)
    assert isinstance(metric, TextMetric)
    return metric


def score(name: str, predictions: list[str], references: list[str], labels: list[str] | None = None) -> float:
    metric = text_metric(name, labels)
    rows = metric.rows(predictions, references)
    assert rows.shape[0] == len(references)
    return float(metric.value(rows.sum(axis=0)))


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_chrf_and_bleu_are_sacrebleus(rows: list[tuple[str, str]]) -> None:
    import sacrebleu

    predictions, references = [p for p, _ in rows], [r for _, r in rows]
    assert score("chrf", predictions, references) == pytest.approx(sacrebleu.corpus_chrf(predictions, [references]).score / 100, abs=1e-12)
    bleu = sacrebleu.corpus_bleu(predictions, [references], force=True).score
    assert score("bleu", predictions, references) == pytest.approx(bleu / 100, abs=1e-12)


def test_bleu_of_long_texts_is_not_zero() -> None:
    import sacrebleu

    predictions = ["The quick brown fox jumps over the lazy dog again.", "It is raining in the north of the country."]
    references = ["The quick brown fox jumped over the lazy dog again.", "It rains in the north of the country today."]
    ours = score("bleu", predictions, references)
    assert ours == pytest.approx(sacrebleu.corpus_bleu(predictions, [references]).score / 100)
    assert 0.3 < ours < 0.9


def test_a_batch_of_sums_is_valued_as_each_alone() -> None:
    for name in names():
        metric = get(name, labels=["a b c d e", "f g h i"])
        if isinstance(metric, LikelihoodMetric):
            rows = metric.rows_from([3.0, 2.0, 7.5], [3, 1, 4], [9, 4, 16])
        elif not isinstance(metric, TextMetric):
            rows = metric.rows_from([3.0, 2.0, 7.5], [3.5, 1.0, 4.0])
        else:
            rows = metric.rows(["a b c d e", "f g h i", "a c b d"], ["a b c d e", "f g h i", "f g h i"])
        batch = metric.value(np.stack([rows.sum(axis=0), rows[1:].sum(axis=0)]))
        assert batch.shape == (2,)
        assert batch == pytest.approx([float(metric.value(rows.sum(axis=0))), float(metric.value(rows[1:].sum(axis=0)))])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*LABELS, "Sport", "none of them"]), st.sampled_from(LABELS)), min_size=1, max_size=40))
def test_macro_f1_and_accuracy_are_sklearns(rows: list[tuple[str, str]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    predictions, references = [p for p, _ in rows], [r for _, r in rows]
    expected = f1_score(references, predictions, labels=LABELS, average="macro", zero_division=0)
    assert score("macro_f1", predictions, references, labels=LABELS) == pytest.approx(expected, abs=1e-12)
    assert score("accuracy", predictions, references) == pytest.approx(accuracy_score(references, predictions), abs=1e-12)


def test_macro_f1_without_labels_takes_the_references_and_ignores_white_space() -> None:
    assert score("macro_f1", ["a ", "b\n", "nothing"], ["a", "b", "b"]) == pytest.approx((1 + 2 / 3) / 2)


def test_macro_f1_refuses_free_text() -> None:
    references = [f"answer {i}" for i in range(1001)]
    with pytest.raises(InputError, match="1001 different ones; use exact_match"):
        text_metric("macro_f1").rows(references, references)


def test_confusion_counts_what_is_no_label_apart() -> None:
    table = confusion(["a", "b", "c", "A", "b"], ["a", "a", "a", "b", "b"], ["a", "b"])
    assert table.tolist() == [[1, 1, 1], [0, 1, 1]]


def test_exact_match_ignores_unicode_form_and_outer_space_but_not_case() -> None:
    metric = text_metric("exact_match")
    predictions = [" cafe\u0301\n", "Yes", "yes.", "", "a  b"]
    references = ["caf\u00e9", "yes", "yes", " ", "a b"]
    assert metric.rows(predictions, references)[:, 0].tolist() == [1, 0, 0, 1, 0]


def test_accuracy_counts_only_the_label_itself() -> None:
    assert score("accuracy", ["spam", "SPAM", "spam.", " spam\n"], ["spam"] * 4) == 0.5


def squad_v2_f1(gold: str, predicted: str) -> float:
    """The official evaluate-v2.0.py, `compute_f1` with its helpers."""

    def tokens(text: str) -> list[str]:
        lowered = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", lowered).split()).split()

    gold_tokens, predicted_tokens = tokens(gold), tokens(predicted)
    same = sum((Counter(gold_tokens) & Counter(predicted_tokens)).values())
    if len(gold_tokens) == 0 or len(predicted_tokens) == 0:
        return int(gold_tokens == predicted_tokens)
    if same == 0:
        return 0
    precision, recall = same / len(predicted_tokens), same / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


@settings(max_examples=200, deadline=None)
@given(texts, texts)
def test_token_f1_is_squads(prediction: str, reference: str) -> None:
    assert score("token_f1", [prediction], [reference]) == pytest.approx(squad_v2_f1(reference, prediction))


@pytest.mark.parametrize(
    ("predictions", "references", "expected"),
    [  # the examples of the published SQuAD metric card
        (["1976"], ["1976"], 1.0),
        (["1999"], ["1976"], 0.0),
        (["1976", "Beyonce", "climate change"], ["1976", "Beyoncé and Bruno Mars", "climate change"], 2 / 3),
        (["The cat, sat"], ["cat sat!"], 1.0),
        (["in the year 1976"], ["1976"], 0.5),
    ],
)
def test_token_f1_of_known_answers(predictions: list[str], references: list[str], expected: float) -> None:
    assert score("token_f1", predictions, references) == pytest.approx(expected)


def test_rouge_l_of_the_papers_example() -> None:
    # Lin 2004, section 3.1: "police killed the gunman" against two candidates, beta 1: 3/4 and 2/4.
    reference = "police killed the gunman"
    assert score("rouge_l", ["police kill the gunman"], [reference]) == pytest.approx(0.75)
    assert score("rouge_l", ["the gunman kill police"], [reference]) == pytest.approx(0.5)
    assert score("rouge_l", ["police kill the gunman", "the gunman kill police", ""], [reference] * 3) == pytest.approx(1.25 / 3)


@pytest.mark.parametrize("name", [name for name in TEXT_METRICS if name not in OF_TAGS])
def test_text_metrics_are_one_for_the_reference_itself_and_zero_for_nothing(name: str) -> None:
    references = ["first of all the answers here", "second of all the answers there", "third one of the many answers"]
    assert score(name, references, references) == pytest.approx(1)
    assert score(name, ["", "", ""], references) == pytest.approx(0)


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_text_metrics_refuse_unequal_lengths_and_no_rows(name: str) -> None:
    with pytest.raises(InputError, match="1 predictions for 2 references"):
        text_metric(name).rows(["a"], ["a", "b"])
    with pytest.raises(InputError, match="no rows"):
        text_metric(name).rows([], [])
