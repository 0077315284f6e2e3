"""What is reached without the model: the floor under every result.

    majority                    the most common answer of the training rows; for tags, of each word the tag that it has most often there
    tfidf_logistic_regression   scikit-learn's logistic regression over TF-IDF of words and pairs of words
    copy_source                 the question itself as the answer, where answers are free text
    longer_answer               of a pair, the answer with more tokens

A fine-tuned model that is no better than these has learned nothing that a simpler program would not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Many
from itertools import islice
from typing import Any

from tunery import metrics
from tunery.data.content import question_and_answer
from tunery.data.rows import Row
from tunery.metrics import TextMetric
from tunery.metrics.preference import PreferenceAccuracy
from tunery.progress import Progress
from tunery.tasks import Task

MOST_ROWS = 100_000
"""Training rows that a baseline learns from: their texts are in memory for it."""


def measure(
    task: Task,
    renderer: Any,
    train: Iterable[Row],
    test: Many[Row],
    lines: Many[dict[str, Any]],
    names: Many[str],
    labels: Many[str] | None,
    progress: Progress,
) -> dict[str, dict[str, metrics.Interval]]:
    """For each baseline that suits the task its value of every metric in `names` that compares answers, with 95 % bounds.

    test: the rows that `lines`, the model's predictions, are about, in their order. labels: the answers that there are, where they are
    few. Empty for a task without answers.
    """
    if "mean_log_prob" in lines[0]:
        return _of_pairs(lines, names)
    wanted = [metric for metric in (metrics.get(name, labels) for name in names) if isinstance(metric, TextMetric)]
    if not wanted or "prediction" not in lines[0]:
        return {}
    references = [line["reference"] for line in lines]
    questions = [question_and_answer(row)[0] for row in test]
    answers: dict[str, list[str]] = {}
    if task.FORM == "token" or labels:
        known = list(islice(train, MOST_ROWS + 1))
        if len(known) > MOST_ROWS:
            known.pop()
            progress.say(f"baselines: learned from the first {MOST_ROWS:,} training rows")
    if task.FORM == "token":
        answers["majority"] = _tags(renderer, known, test)
    elif labels:
        pairs = [question_and_answer(row) for row in known]
        answers["majority"] = [_most_common(Counter(answer for _, answer in pairs))] * len(test)
        if len({answer for _, answer in pairs}) > 1:
            progress.show("baselines: TF-IDF + logistic regression", 0)
            answers["tfidf_logistic_regression"] = _regression([q for q, _ in pairs], [a for _, a in pairs], questions)
    else:
        answers["copy_source"] = questions
    return {
        name: {metric.name: metrics.interval(metric, metric.rows(predictions, references)) for metric in wanted}
        for name, predictions in answers.items()
    }


def _of_pairs(lines: Many[dict[str, Any]], names: Many[str]) -> dict[str, dict[str, metrics.Interval]]:
    """Preferring the answer with more tokens. (Guessing is right in half of the pairs.)"""
    chosen, rejected = zip(*(line["length"] for line in lines), strict=True)
    accuracies = [m for m in map(metrics.get, names) if isinstance(m, PreferenceAccuracy)]
    return {"longer_answer": {m.name: metrics.interval(m, m.rows_from(chosen, rejected)) for m in accuracies}}


def _regression(texts: Many[str], labels: Many[str], asked: Many[str]) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+")  # its own pattern drops words of one letter
    try:
        # Rows of TF-IDF have length 1, for which scikit-learn's C of 1 leaves the weights too small.
        model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000)).fit(list(texts), list(labels))
    except ValueError:  # no text holds a word
        return [_most_common(Counter(labels))] * len(asked)
    found: list[str] = model.predict(list(asked)).tolist()
    return found


def _tags(renderer: Any, train: Many[Row], test: Many[Row]) -> list[str]:
    by_word: dict[str, Counter[str]] = {}
    everywhere: Counter[str] = Counter()
    for row in train:
        for word, tag in zip(row.value["tokens"], renderer.tags(row), strict=True):
            by_word.setdefault(word, Counter())[tag] += 1
            everywhere[tag] += 1
    most = {word: _most_common(counts) for word, counts in by_word.items()}
    unseen = _most_common(everywhere)
    return [" ".join(most.get(word, unseen) for word in row.value["tokens"]) for row in test]


def _most_common(counts: Counter[str]) -> str:
    """The most common; of several the first in the order of text, so that it does not depend on the rows' order."""
    return min(counts, key=lambda key: (-counts[key], key))
