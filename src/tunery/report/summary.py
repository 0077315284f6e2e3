"""The result of a run for the terminal: a table of before and after, and the headline in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunery.report.content import comparison_rows
from tunery.report.format import count
from tunery.report.words import headline, mapping, remarks

if TYPE_CHECKING:
    from rich.table import Table

_STYLE = {"good": "green", "bad": "red", "neutral": "dim"}


def before_after_table(report: Mapping[str, Any]) -> Table:
    """Each metric of a report before and after with 95 % bounds, the difference and its p-value. Empty without evaluation."""
    from rich.table import Table
    from rich.text import Text

    evaluation = mapping(report.get("evaluation"))
    rows = f", {count(evaluation['rows'])} held-out rows" if evaluation.get("rows") else ""
    table = Table(title=f"Before and after{rows}, with 95 % bounds", title_justify="left", title_style="bold")
    for name in ("metric", "before", "after", "difference", "p"):
        table.add_column(name, justify="left" if name == "metric" else "right", no_wrap=name == "metric")
    for row in comparison_rows(evaluation):
        table.add_row(
            Text(row["metric"].title),
            _with_bounds(row["before"], row["before_bounds"]),
            _with_bounds(row["after"], row["after_bounds"]),
            Text(_with_bounds(row["change"], row["change_bounds"]), style=_STYLE[row["tone"]]),
            row["p_value"],
        )
    return table


def summary_text(report: Mapping[str, Any]) -> str:
    """The headline, its explanation and the remarks, a line each."""
    top = headline(report)
    return "\n".join([top.title, top.text, *(f"Note: {remark}" for remark in remarks(report))])


def _with_bounds(value: str, bounds: str) -> str:
    return f"{value} ({bounds})" if bounds else value
