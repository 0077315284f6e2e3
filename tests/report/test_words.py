"""The headline, the remarks, the numbers and the terminal's table."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest

from tunery.report import before_after_table, summary_text
from tunery.report import format as show
from tunery.report.format import MetricInfo
from tunery.report.words import headline, primary_metric, remarks


def report(before: float, after: float, p: float | None, name: str = "accuracy", rows: int = 400) -> dict[str, Any]:
    def around(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.04, "high": value + 0.04}

    evaluation: dict[str, Any] = {"rows": rows, "before": {name: around(before)}, "after": {name: around(after)}}
    if p is not None:
        change = after - before
        evaluation["difference"] = {name: {"difference": change, "low": change - 0.05, "high": change + 0.05, "p_value": p}}
    return {"status": "succeeded", "evaluation": evaluation}


def test_a_significant_gain() -> None:
    top = headline(report(0.495, 0.835, 0.0009995))
    assert top.title == "Accuracy rose from 49.5\u00a0% to 83.5\u00a0%"
    assert top.tone == "good"
    assert "400 held-out rows" in top.text
    assert "between 79.5 and 87.5\u00a0%" in top.text
    assert "improvement of +34.0\u00a0points (95 % bounds 29.0 to 39.0) is significant (p < 0.001" in top.text


def test_a_significant_loss_is_called_worse() -> None:
    top = headline(report(0.835, 0.495, 0.001))
    assert top.title.startswith("Accuracy fell")
    assert top.tone == "bad"
    assert "got worse" in top.text
    assert "p = 0.001" in top.text


def test_lower_is_better_for_the_loss() -> None:
    better, worse = headline(report(2.0, 0.5, 0.001, "loss")), headline(report(0.5, 2.0, 0.001, "loss"))
    assert (better.title, better.tone) == ("Loss fell from 2.000 to 0.500", "good")
    assert (worse.title, worse.tone) == ("Loss rose from 0.500 to 2.000", "bad")


def test_a_difference_within_chance_is_called_that() -> None:
    top = headline(report(0.5, 0.52, 0.31))
    assert "within what chance alone does (p = 0.310" in top.text
    assert top.tone == "neutral"
    assert headline(report(0.5, 0.5, 1.0)).title == "Accuracy stayed at 50.0\u00a0%"


def test_without_a_test_nothing_is_called_significant() -> None:
    assert "chance is not ruled out" in headline(report(0.2, 0.9, None)).text


def test_one_side_only() -> None:
    half = report(0.5, 0.9, None)
    half["evaluation"]["before"] = {}
    assert headline(half).title == "Accuracy after training: 90.0\u00a0%"
    assert "nothing to compare" in headline(half).text


@pytest.mark.parametrize("status", ["failed", "cancelled", None])
def test_a_run_without_success_never_shows_a_result(status: str | None) -> None:
    top = headline({**report(0.1, 0.9, 0.001), "status": status})
    assert "90" not in top.title
    assert top.tone != "good"


def test_the_primary_metric_is_the_named_one_if_it_was_measured() -> None:
    evaluation = {"after": {"loss": {}, "chrf": {}}, "primary": "chrf"}
    assert primary_metric({"evaluation": evaluation}) == "chrf"
    assert primary_metric({"evaluation": {**evaluation, "primary": "bleu"}}) == "loss"
    assert primary_metric({"evaluation": None}) is None


def test_remarks_name_what_spoils_a_result(full_report: dict[str, Any]) -> None:
    spoilt = copy.deepcopy(full_report)
    spoilt["data"].update(leaked_rows=1, truncated_rows=12)
    spoilt["exports"]["onnx"] = {"error": "the builder has no such precision"}
    found = remarks(spoilt)
    assert found[0].startswith("1 row of the test data also")
    assert found[1].startswith("12 rows of the training data were cut")
    assert any(r.startswith("The model forgot some of its general documentation (1.3\u00a0% more bits") for r in found)
    assert not any("general code" in r for r in found)  # within chance
    assert "The export onnx failed: the builder has no such precision" in found
    assert remarks({}) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (show.size(2_310_000_000), "2.31 GB"), (show.size(999), "999 bytes"), (show.size(None), "–"), (show.size(19_600_000), "19.6 MB"),
        (show.duration(0.42), "0.4 s"), (show.duration(59.96), "1 min 0 s"), (show.duration(412.7), "6 min 53 s"),
        (show.duration(3725), "1 h 2 min"),
        (show.percent(0.8347), "83.5 %"), (show.percent(float("nan")), "–"), (show.count(1234567), "1,234,567"), (show.count(True), "–"),
        (show.significant(3.4123), "3.412"), (show.significant(0.0000312), "3.1e-05"), (show.significant(1234.5), "1,234"),
        (show.significant(0), "0"),
        (show.p_value(0.0004), "< 0.001"), (show.p_value(0.04), "0.040"),
        (show.plain([1, "a", None]), "1, a, –"), (show.plain(True), "yes"),
        (MetricInfo.of("accuracy").change(-0.0512), "−5.1 points"), (MetricInfo.of("accuracy").change(0.0), "0.0 points"),
        (MetricInfo.of("loss").change(-0.5), "−0.500"), (MetricInfo.of("loss").bounds({"low": -0.61, "high": -0.39}), "−0.610 to −0.390"),
        (MetricInfo.of("made_up").title, "Made up"), (MetricInfo.of("made_up").show("x"), "–"),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(text: str, expected: str) -> None:
    assert text.replace("\u00a0", " ") == expected


def test_the_terminals_table_holds_every_metric(full_report: dict[str, Any]) -> None:
    from rich.console import Console

    table = before_after_table(full_report)
    assert table.row_count == len(full_report["evaluation"]["after"])
    console = Console(file=io.StringIO(), width=140)
    console.print(table)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    value = 100 * full_report["evaluation"]["after"]["accuracy"]["value"]
    assert f"{value:.1f}\u00a0%" in printed
    assert "400 held-out rows" in printed
    assert before_after_table({"evaluation": None}).row_count == 0
    assert before_after_table({}).row_count == 0


def test_markup_in_a_metrics_name_does_not_break_the_table() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=140)
    console.print(before_after_table(report(0.1, 0.9, 0.2, name="[/bold]odd")))
    assert "[/bold]odd" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_summary_is_the_headline_with_its_remarks(full_report: dict[str, Any]) -> None:
    lines = summary_text(full_report).split("\n")
    assert lines[0] == headline(full_report).title
    assert lines[2].startswith("Note: The model forgot")
