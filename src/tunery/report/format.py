"""Numbers as people read them: shares in per cent, bytes in GB, seconds in minutes. What is missing is a dash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from tunery import metrics
from tunery.errors import InputError

DASH = "–"
NARROW = "\u00a0"
"""A space that does not break: a number stays with its unit."""


@dataclass(frozen=True)
class MetricInfo:
    """How a metric of a report is named and read. One that this version does not know is shown as it is."""

    name: str
    title: str
    unit: str
    higher_is_better: bool

    @classmethod
    def of(cls, name: str) -> MetricInfo:
        try:
            metric = metrics.get(name)
        except InputError:
            return cls(name, name.replace("_", " ").capitalize(), "ratio", True)
        return cls(name, metric.title, metric.unit, metric.higher_is_better)

    def show(self, value: Any) -> str:
        """A value in its unit."""
        if not is_number(value):
            return DASH
        return percent(value) if self.unit == "share" else significant(value)

    def bounds(self, interval: Mapping[str, Any]) -> str:
        """The 95 % bounds without the unit, `44.8 to 54.3`; empty when there are none."""
        low, high = interval.get("low"), interval.get("high")
        if not (is_number(low) and is_number(high)):
            return ""
        low, high = (f"{100 * low:.1f}", f"{100 * high:.1f}") if self.unit == "share" else (significant(low), significant(high))
        return f"{low} to {high}".replace("-", "−")

    def change(self, value: Any) -> str:
        """A difference with its sign: shares in percentage points."""
        if not is_number(value):
            return DASH
        text = f"{abs(100 * value):.1f}{NARROW}points" if self.unit == "share" else significant(abs(value))
        if float("".join(c for c in text if c in "0123456789.")) == 0:
            return text
        return f"{'+' if value > 0 else '−'}{text}"


def is_number(value: Any) -> TypeGuard[float]:
    """A finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: Any, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}{NARROW}%" if is_number(value) else DASH


def significant(value: Any) -> str:
    """Three decimals for what is about one, fewer for what is large, powers of ten for what is tiny."""
    if not is_number(value):
        return DASH
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.001 or size >= 1e7:
        return f"{value:.2g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.{1 if size >= 100 else 2 if size >= 10 else 3}f}"


def count(value: Any) -> str:
    """A whole number with thousands set apart."""
    return f"{round(value):,}" if is_number(value) else DASH


def rate(value: Any) -> str:
    """So many a second, two decimals."""
    return f"{value:,.2f}" if is_number(value) else DASH


def size(value: Any) -> str:
    """Bytes in decimal units, as disks and memory prices are given."""
    if not is_number(value):
        return DASH
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.{2 if unit == 'GB' else 1}f}{NARROW}{unit}"
    return f"{value:.0f}{NARROW}bytes"


def duration(value: Any) -> str:
    """Seconds as `8 min 12 s`."""
    if not is_number(value):
        return DASH
    if round(value, 1) < 60:
        return f"{value:.1f}{NARROW}s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NARROW}h {minutes}{NARROW}min" if hours else f"{minutes}{NARROW}min {seconds}{NARROW}s"


def p_value(value: Any) -> str:
    """A p-value; what is below a thousandth is only said to be that."""
    if not is_number(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def plain(value: Any) -> str:
    """Any value of a report in words: numbers short, lists joined, the rest as text."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {plain(v)}" for k, v in value.items())
    return str(value)
