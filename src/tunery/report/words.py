"""What a report says, in plain words: the headline, and what a reader should know before trusting it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunery.report.format import MetricInfo, count, is_number, p_value, percent

SIGNIFICANT = 0.05
"""The usual level: a difference this rare under chance alone is called significant."""


@dataclass(frozen=True)
class Headline:
    """One line, one explanation, and how to colour them."""

    title: str
    text: str
    tone: Literal["good", "bad", "neutral"]


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one: any part of a report may be missing."""
    return value if isinstance(value, Mapping) else {}


def primary_metric(report: Mapping[str, Any]) -> str | None:
    """The metric to look at first: the one that the evaluation names, else the first one after training."""
    evaluation = mapping(report.get("evaluation"))
    measured = mapping(evaluation.get("after")) or mapping(evaluation.get("before"))
    named = evaluation.get("primary")
    return named if named in measured else next(iter(measured), None)


def headline(report: Mapping[str, Any]) -> Headline:
    """The main result of a run, or why there is none."""
    status = report.get("status")
    if status == "failed":
        return Headline(
            "The run failed", str(report.get("error") or "No error was recorded; log.txt in the run directory may hold it."), "bad"
        )
    if status == "cancelled":
        return Headline(
            "The run was stopped before its end", "Its checkpoints are kept: `tunery resume` goes on from the last one.", "neutral"
        )
    if status != "succeeded":
        return Headline("The run has no result yet", "It has not ended, or report.json was not written.", "neutral")
    name = primary_metric(report)
    if name is None:
        return Headline(
            "Trained, not evaluated", "The recipe names no test rows (data.test), so nothing was measured before and after.", "neutral"
        )
    return _comparison(mapping(report["evaluation"]), MetricInfo.of(name))


def _comparison(evaluation: Mapping[str, Any], metric: MetricInfo) -> Headline:
    before = mapping(mapping(evaluation.get("before")).get(metric.name))
    after = mapping(mapping(evaluation.get("after")).get(metric.name))
    rows = f"{count(evaluation.get('rows'))} held-out rows"
    if not (is_number(before.get("value")) and is_number(after.get("value"))):
        side, one = ("after", after) if after else ("before", before)
        return Headline(
            f"{metric.title} {side} training: {metric.show(one.get('value'))}",
            f"Measured on {rows}; there is nothing to compare it with.",
            "neutral",
        )
    change = after["value"] - before["value"]
    bounds = metric.bounds(after)
    measured = (
        f"Measured on {rows}"
        + (
            f"; the value after training lies between {bounds.replace(' to ', ' and ')}{_unit(metric)} with 95 % confidence"
            if bounds
            else ""
        )
        + "."
    )
    title = f"{metric.title} {_verb(change)} from {metric.show(before['value'])} to {metric.show(after['value'])}"
    if change == 0:
        title = f"{metric.title} stayed at {metric.show(after['value'])}"
    difference = mapping(mapping(evaluation.get("difference")).get(metric.name))
    p = difference.get("p_value")
    if not is_number(p):
        return Headline(title, f"{measured} No paired test was recorded, so chance is not ruled out.", "neutral")
    between = metric.bounds(difference)
    by = f"{metric.change(difference.get('difference'))}" + (f" (95 % bounds {between})" if between else "")
    better = (change > 0) == metric.higher_is_better
    if p >= SIGNIFICANT:
        return Headline(
            title,
            f"{measured} The difference of {by} is within what chance alone does (p = {p_value(p)}, paired randomisation test).",
            "neutral",
        )
    sign = "" if p_value(p).startswith("<") else "= "
    verdict = "The improvement" if better else "It got worse: the difference"
    return Headline(
        title,
        f"{measured} {verdict} of {by} is significant (p {sign}{p_value(p)}, paired randomisation test).",
        "good" if better else "bad",
    )


def _unit(metric: MetricInfo) -> str:
    return "\u00a0%" if metric.unit == "share" else ""


def _verb(change: float) -> str:
    return "rose" if change > 0 else "fell"


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What to know before trusting the result, each a sentence; empty when there is nothing."""
    found = []
    data, evaluation = mapping(report.get("data")), mapping(report.get("evaluation"))
    if _more_than_none(data.get("leaked_rows")):
        found.append(
            f"{_rows(data['leaked_rows'])} of the test data also stand in the training data, so the result after training may be too good."
        )
    if _more_than_none(data.get("truncated_rows")):
        found.append(f"{_rows(data['truncated_rows'])} of the training data were cut at train.max_length.")
    if _more_than_none(data.get("dropped_rows")):
        found.append(f"{_rows(data['dropped_rows'])} of the training data were dropped.")
    if _more_than_none(evaluation.get("lost_words")):
        found.append(
            f"{count(evaluation['lost_words'])} words of the test rows were cut off or are unknown to the tokenizer; they count as untagged."
        )
    found += _beaten(evaluation)
    for domain, probe in mapping(evaluation.get("forgetting")).items():
        difference = mapping(mapping(probe).get("difference"))
        change, p = difference.get("difference"), difference.get("p_value")
        if is_number(change) and is_number(p) and p < SIGNIFICANT and change > 0:
            old = mapping(mapping(probe).get("before")).get("value")
            share = f" ({percent(change / old)} more bits per byte)" if is_number(old) and old > 0 else ""
            found.append(f"The model forgot some of its general {domain}{share}; see the forgetting probe.")
    for name, export in mapping(report.get("exports")).items():
        if mapping(export).get("error"):
            found.append(f"The export {name} failed: {mapping(export)['error']}")
    return found


def _beaten(evaluation: Mapping[str, Any]) -> list[str]:
    """The baselines that are as good as the trained model on the metric to look at first."""
    name = primary_metric({"evaluation": evaluation})
    own = mapping(mapping(evaluation.get("after")).get(name)).get("value") if name else None
    sentences = []
    for baseline, values in mapping(evaluation.get("baselines")).items():
        value = mapping(mapping(values).get(name or "")).get("value")
        if name and is_number(own) and is_number(value):
            metric = MetricInfo.of(name)
            if value >= own if metric.higher_is_better else value <= own:
                said = f"the trained model's {metric.show(own)}"
                sentences.append(
                    f"The baseline {str(baseline).replace('_', ' ')} reaches {metric.show(value)} in {metric.title}, no less than {said}."
                )
    return sentences


def _more_than_none(value: Any) -> bool:
    return is_number(value) and value > 0


def _rows(value: Any) -> str:
    return "1 row" if value == 1 else f"{count(value)} rows"
