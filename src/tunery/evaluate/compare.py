"""From two files of predictions to the report's `evaluation`: each metric before and after with bounds, and a paired test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunery import metrics
from tunery.errors import InputError
from tunery.metrics import LikelihoodMetric

LIKELIHOOD = ("loss", "bits_per_byte")
BY_LABEL = ("accuracy", "macro_f1")
"""Metrics of choosing a label: they count the likeliest label, while exact match counts what the model says."""


def chosen_metrics(wanted: Sequence[str] | None, lines: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The metrics to report, the primary one first: those asked for or those that suit the answers, and always the likelihood."""
    answered = bool(lines) and "prediction" in lines[0]
    if wanted is None:
        wanted = metrics.choose([line["reference"] for line in lines]) if answered else ()
    for name in wanted:
        if not answered and not isinstance(metrics.get(name), LikelihoodMetric):
            raise InputError(
                f"evaluate.metrics: `{name}` compares answers, and this task has none; choose from loss, perplexity, bits_per_byte"
            )
    return (*wanted, *(name for name in LIKELIHOOD if name not in wanted))


def statistics(name: str, lines: Sequence[dict[str, Any]], labels: Sequence[str] | None) -> tuple[metrics.Metric, Any]:
    """The metric and the row statistics (N, K) of these predictions."""
    metric = metrics.get(name, labels)
    if isinstance(metric, LikelihoodMetric):
        nll, tokens, size = ([line[k] for line in lines] for k in ("nll", "tokens", "bytes"))
        return metric, metric.rows_from(nll, tokens, size)
    answers = [line["label"] if name in BY_LABEL and "label" in line else line["prediction"] for line in lines]
    return metric, metric.rows(answers, [line["reference"] for line in lines])


def measure(names: Sequence[str], lines: Sequence[dict[str, Any]]) -> dict[str, metrics.Interval]:
    """Every metric of one set of predictions, with 95 % bounds."""
    labels = labels_of(lines)
    return {name: metrics.interval(*statistics(name, lines, labels)) for name in names}


def compare(names: Sequence[str], before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The `evaluation` of report.json. Both sides must be about the same rows in the same order."""
    labels = labels_of(before)
    evaluation: dict[str, Any] = {
        "rows": len(before),
        "primary": names[0],
        "before": measure(names, before),
        "after": measure(names, after),
        "difference": {},
    }
    if labels:
        evaluation["labels"] = list(labels)
    for name in names:
        metric, old = statistics(name, before, labels)
        _, new = statistics(name, after, labels)
        evaluation["difference"][name] = metrics.paired(metric, old, new)
    return evaluation


def labels_of(lines: Sequence[dict[str, Any]]) -> tuple[str, ...] | None:
    """The answers that exist, where they are few."""
    return metrics.find_labels([line["reference"] for line in lines]) if lines and "reference" in lines[0] else None
