"""The charts show the numbers that they were given."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery.report import charts
from tunery.report.svg import AFTER


def bars(svg: str, variable: str) -> list[float]:
    """The heights of the bars in that colour, in the SVG's points, from left to right."""
    shapes = re.findall(
        r'<path d="M ([\d.]+) ([\d.]+)\s*\n?L [\d.]+ [\d.]+\s*\n?L [\d.]+ ([\d.]+)[^"]*"[^>]*fill: var\(' + variable + r"\)", svg
    )
    return [float(foot) - float(head) for _, foot, head in shapes]


def test_bars_are_as_high_as_their_values() -> None:
    sides = [
        {n: {"value": v, "low": v - 0.05, "high": v + 0.05} for n, v in pairs.items()}
        for pairs in ({"accuracy": 0.2, "chrf": 0.4}, {"accuracy": 0.8, "chrf": 0.5})
    ]
    svg = charts.before_after(*sides)
    assert svg is not None
    before, after = bars(svg, "--before"), bars(svg, "--after")
    assert len(before) == len(after) == 2
    unit = before[0] / 0.2
    assert [before[1] / unit, after[0] / unit, after[1] / unit] == pytest.approx([0.4, 0.8, 0.5], abs=0.002)
    for text in ("20.0", "40.0", "80.0", "50.0", "Accuracy", "chrF"):
        assert f">{text}<" in svg


def test_nothing_to_draw_is_no_chart() -> None:
    assert charts.before_after({}, {}) is None
    assert charts.before_after({"loss": {"value": None}}, {"loss": "odd"}) is None
    assert charts.loss_curve([]) is None
    assert charts.loss_curve([{"step": 1}, {"loss": 2.0}]) is None
    assert charts.stage_seconds({"train": 0, "data": None}) is None


def test_extreme_values_are_drawn() -> None:
    for value in (0.0, 1.0, -0.2, 1e-12, 1e9):
        interval = {"value": value, "low": value, "high": value}
        assert charts.before_after({"loss": interval, "accuracy": interval}, {"loss": interval}) is not None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=300))
def test_smoothing_stays_within_the_values_and_keeps_a_line_a_line(values: list[float]) -> None:
    smooth = charts._smoothed(values)
    assert len(smooth) == len(values)
    assert min(values) - 1e-9 <= min(smooth) <= max(smooth) <= max(values) + 1e-9
    line = [3.0 - 0.5 * i for i in range(len(values))]
    assert charts._smoothed(line) == pytest.approx(line)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000))
def test_thinning_keeps_the_ends_and_the_order(count: int) -> None:
    x, y = charts._thinned(list(range(count)), list(range(count)))
    assert len(x) == len(y) <= charts.MOST_POINTS + 1
    assert x == sorted(x)
    assert (x[-1], y[-1]) == (count - 1, count - 1)


def test_a_stand_in_colour_is_nowhere_in_a_finished_chart() -> None:
    svg = charts.stage_seconds({"train": 3.0})
    assert svg is not None
    assert AFTER not in svg
    assert "var(--after)" in svg
