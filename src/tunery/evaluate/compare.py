"""From two files of predictions to the report's `evaluation`: each metric before and after with bounds, and a paired test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunery import metrics
from tunery.errors import InputError
from tunery.metrics import LikelihoodMetric, PairMetric
from tunery.metrics.entity_f1 import by_type
from tunery.tasks import Task

LIKELIHOOD = ("loss", "bits_per_byte")
OF_PAIRS = ("preference_accuracy", "reward_accuracy", "reward_margin")
BY_LABEL = ("accuracy", "macro_f1")
"""Metrics of choosing a label: they count the likeliest label, while exact match counts what the model says."""


def chosen_metrics(wanted: Sequence[str] | None, lines: Sequence[dict[str, Any]], own: Sequence[str] = ()) -> tuple[str, ...]:
    """The metrics to report, the primary one first: those asked for, the task's `own` or those that suit the answers, and the likelihood."""
    answered = bool(lines) and "prediction" in lines[0]
    if wanted is None:
        of_pairs = [name for name in OF_PAIRS if lines and _reads(name) in lines[0]]
        wanted = (tuple(own) or metrics.choose([line["reference"] for line in lines])) if answered else tuple(of_pairs)
    for name in wanted:
        if lines and _reads(name) in lines[0]:
            continue
        if isinstance(metrics.get(name), PairMetric):
            raise InputError(
                f"evaluate.metrics: `{name}` compares both answers of a pair, and by a reward that training began to be measured from; "
                "it is known for the test rows of a run whose task is `preference`"
            )
        if not answered and not isinstance(metrics.get(name), LikelihoodMetric):
            raise InputError(
                f"evaluate.metrics: `{name}` compares answers, and this task has none; choose from loss, perplexity, bits_per_byte"
            )
    likelihood = LIKELIHOOD if not lines or "bytes" in lines[0] else ("loss",)  # a head predicts no text
    return (*wanted, *(name for name in likelihood if name not in wanted))


def statistics(name: str, lines: Sequence[dict[str, Any]], labels: Sequence[str] | None) -> tuple[metrics.Metric, Any]:
    """The metric and the row statistics (N, K) of these predictions."""
    metric = metrics.get(name, labels)
    if isinstance(metric, LikelihoodMetric):
        nll, tokens, size = ([line.get(k, 0) for line in lines] for k in ("nll", "tokens", "bytes"))
        return metric, metric.rows_from(nll, tokens, size)
    if isinstance(metric, PairMetric):
        return metric, metric.rows_from(*zip(*(line[metric.reads] for line in lines), strict=True))
    answers = [line["label"] if name in BY_LABEL and "label" in line else line["prediction"] for line in lines]
    return metric, metric.rows(answers, [line["reference"] for line in lines])


def _reads(name: str) -> str | None:
    """What a metric of pairs looks at; None for other metrics."""
    return getattr(metrics.get(name), "reads", None)


def measure(names: Sequence[str], lines: Sequence[dict[str, Any]], known: Sequence[str] | None = None) -> dict[str, metrics.Interval]:
    """Every metric of one set of predictions, with 95 % bounds. known: as in `labels_of`."""
    labels = labels_of(lines, known)
    return {name: metrics.interval(*statistics(name, lines, labels)) for name in names}


def compare(
    names: Sequence[str], before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], known: Sequence[str] | None = None
) -> dict[str, Any]:
    """The `evaluation` of report.json. Both sides must be about the same rows in the same order. known: as in `labels_of`."""
    labels = labels_of(before, known)
    evaluation: dict[str, Any] = {
        "rows": len(before),
        "primary": names[0],
        "before": measure(names, before, known),
        "after": measure(names, after, known),
        "difference": {},
    }
    if labels:
        evaluation["labels"] = list(labels)
    for name in names:
        metric, old = statistics(name, before, labels)
        _, new = statistics(name, after, labels)
        evaluation["difference"][name] = metrics.paired(metric, old, new)
    if "lost_words" in after[0]:
        answers = [[line[side] for line in after] for side in ("prediction", "reference")]
        evaluation["lost_words"] = sum(line["lost_words"] for line in after)
        if any("entity" in name for name in names):
            evaluation["entities"] = by_type(*answers)
    return evaluation


def known_labels(task: Task, options: Any) -> tuple[str, ...] | None:
    """The answers that a task's options name, () for a task whose answers are no single labels, None where only the rows can tell."""
    return () if task.FORM == "token" else getattr(options, "labels", None)


def labels_of(lines: Sequence[dict[str, Any]], known: Sequence[str] | None = None) -> tuple[str, ...] | None:
    """The answers that exist, where they are few: of those that are `known` the ones that these rows have, else found in the rows."""
    if known is not None:
        expected = {line["reference"] for line in lines}
        return tuple(label for label in known if label in expected) or None
    return metrics.find_labels([line["reference"] for line in lines]) if lines and "reference" in lines[0] else None
