"""The charts of the page, each an SVG element: before/after bars with bounds, the loss curve, the stages' seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunery.report.format import MetricInfo, is_number
from tunery.report.svg import AFTER, BEFORE, GRID, INK, SOFT, VALID, inline, settings
from tunery.report.words import mapping

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 600
"""Points of a line; more cannot be told apart on a screen, and would make the page heavy."""

SMOOTHED_FROM = 10
"""Steps from which on the loss of single steps is shown faint and a smoothed line over it."""

BAR = 0.36


def before_after(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Grouped bars, a pair a metric, with 95 % bounds: all shares on one axis in per cent, every other metric on its own.

    None when nothing was measured.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = [n for n in dict.fromkeys([*after, *before]) if any(is_number(mapping(side.get(n)).get("value")) for side in (before, after))]
    shares = [m for m in map(MetricInfo.of, names) if m.unit == "share"]
    others = [m for m in map(MetricInfo.of, names) if m.unit != "share"]
    panels: list[list[MetricInfo]] = ([shares] if shares else []) + [[m] for m in others]
    if not panels:
        return None
    with settings():
        figure = Figure(figsize=(12, 4.2), layout=ConstrainedLayoutEngine(wspace=0.06))
        axes = figure.subplots(1, len(panels), width_ratios=[max(1.0, 0.9 * len(p)) for p in panels], squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            _bars(axis, panel, before, after)
        spoken = "; ".join(_spoken(MetricInfo.of(n), before, after) for n in names)
        return inline(figure, f"Bars of each metric before and after training, with 95 % bounds. {spoken}.")


def _bars(axis: Axes, panel: Sequence[MetricInfo], before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    shares = panel[0].unit == "share"
    scale = 100 if shares else 1
    top = 0.0
    for place, metric in enumerate(panel):
        for side, offset, colour in ((before, -0.5, BEFORE), (after, 0.5, AFTER)):
            interval = mapping(side.get(metric.name))
            value, low, high = (interval.get(k) for k in ("value", "low", "high"))
            if not is_number(value):
                continue
            x, low, high = place + offset * (BAR + 0.04), _or(low, value), _or(high, value)
            axis.bar(x, value * scale, BAR, color=colour, linewidth=0)
            spread = [[max(0.0, value - low) * scale], [max(0.0, high - value) * scale]]
            axis.errorbar(x, value * scale, yerr=spread, fmt="none", ecolor=INK, elinewidth=1.3, capsize=4, capthick=1.3)
            label = axis.annotate(
                f"{value * 100:.1f}" if shares else metric.show(value), (x, high * scale), xytext=(0, 5), textcoords="offset points"
            )
            label.set(ha="center", va="bottom", fontsize=11, color=INK, fontweight=700 if colour == AFTER else 400)
            top = max(top, high * scale)
    axis.set_xticks(range(len(panel)), [m.title for m in panel], color=INK)
    axis.set_xlim(-0.62, len(panel) - 0.38)
    axis.set_ylim(0, max(top * 1.12, 1e-9))
    if shares:
        axis.set_ylim(0, min(112.0, max(top * 1.15, 10)))
        axis.yaxis.set_major_formatter(lambda y, _: f"{y:.0f} %")
        axis.set_yticks([t for t in axis.get_yticks() if 0 <= t <= 100])
    else:
        axis.set_title("higher is better" if panel[0].higher_is_better else "lower is better", fontsize=10, color=SOFT)
        axis.locator_params(axis="y", nbins=5)
    axis.grid(axis="y")


def _or(bound: Any, value: float) -> float:
    """The bound, or the value itself where there is none."""
    return bound if is_number(bound) else value


def _spoken(metric: MetricInfo, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return f"{metric.title}: " + ", ".join(
        f"{name} {metric.show(mapping(side.get(metric.name)).get('value'))}" for name, side in (("before", before), ("after", after))
    )


def loss_curve(steps: Sequence[Mapping[str, Any]], unit: str = "supervised token") -> str | None:
    """Training loss of each step in nats a `unit`, smoothed where there are ten steps or more, the validation's points, and the learning rate below.

    None without any step that has a loss.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    train, valid, rate = (_series(steps, key) for key in ("loss", "valid_loss", "learning_rate"))
    if not train[0]:
        return None
    with settings():
        figure = Figure(figsize=(12, 4.9 if rate[0] else 4), layout="constrained")
        axes = figure.subplots(2 if rate[0] else 1, 1, sharex=True, squeeze=False, height_ratios=[4, 1] if rate[0] else [1])[:, 0]
        axis = axes[0]
        x, y = _thinned(*train)
        if len(train[0]) >= SMOOTHED_FROM:
            axis.plot(x, y, color=BEFORE, linewidth=1, alpha=0.8)
            axis.plot(*_thinned(train[0], _smoothed(train[1])), color=AFTER, linewidth=2.2)
        else:
            axis.plot(x, y, color=AFTER, linewidth=2, marker="o", markersize=5)
        if valid[0]:
            axis.plot(*valid, color=VALID, linewidth=1.6, marker="D", markersize=5.5, linestyle="--" if len(valid[0]) > 1 else "none")
        axis.set_ylabel(f"nats a {unit}")
        _room(axis, [*y, *valid[1]])
        axis.grid(axis="y")
        if rate[0]:
            axes[1].plot(*_thinned(*rate), color=SOFT, linewidth=1.5, marker="o" if len(rate[0]) < 10 else None, markersize=4)
            axes[1].set_ylabel("learning rate")
            peak = max(rate[1])
            axes[1].set_ylim(0, peak * 1.25 if peak > 0 else 1)
            axes[1].set_yticks([0, peak] if peak > 0 else [0], ["0", f"{peak:.1e}".replace("e-0", "e-")] if peak > 0 else ["0"])
            axes[1].grid(axis="y")
        axes[-1].set_xlabel("optimiser step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes[-1].set_xlim(0, max(train[0]) * 1.02 + 0.5)
        figure.align_ylabels(axes)
        spoken = (
            f"The training loss goes from {train[1][0]:.3f} at step {train[0][0]:.0f} to {train[1][-1]:.3f} at step {train[0][-1]:.0f}."
        )
        if valid[0]:
            spoken += f" The validation loss goes from {valid[1][0]:.3f} to {valid[1][-1]:.3f}."
        return inline(figure, spoken)


def stage_seconds(stages: Mapping[str, Any]) -> str | None:
    """One bar in parts: where the time of the whole run went. None without stages that took time."""
    from matplotlib.figure import Figure

    from tunery.report.format import duration

    parts = [(str(name), seconds) for name, seconds in stages.items() if is_number(seconds) and seconds > 0]
    if not parts:
        return None
    total = sum(seconds for _, seconds in parts)
    with settings():
        figure = Figure(figsize=(12, 0.36 * len(parts) + 0.3), layout="constrained")
        axis = figure.subplots()
        places = range(len(parts))
        axis.barh(places, [seconds for _, seconds in parts], 0.62, color=AFTER, linewidth=0)
        for place, (_, seconds) in zip(places, parts, strict=True):
            axis.annotate(
                f"{duration(seconds)} · {100 * seconds / total:.0f} %",
                (seconds, place),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=11,
                color=INK,
            )
        axis.set_yticks(places, [name for name, _ in parts], color=INK)
        axis.invert_yaxis()
        axis.set_xlim(0, max(seconds for _, seconds in parts) * 1.25)
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
        axis.spines["left"].set_visible(True)
        axis.spines["left"].set_color(GRID)
        return inline(figure, "Seconds of each stage: " + ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts) + ".")


def _series(steps: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [(float(s["step"]), float(s[key])) for s in steps if is_number(s.get("step")) and is_number(s.get(key))]
    return [x for x, _ in points], [y for _, y in points]


def _smoothed(values: Sequence[float]) -> list[float]:
    """The mean of about a twelfth of the steps around each: centred, so that a falling curve is not shown late."""
    from itertools import accumulate

    sums = [0.0, *accumulate(values)]
    half = max(2, len(values) // 24)
    smooth = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        smooth.append((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1))
    return smooth


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `MOST_POINTS` points, each the mean of its stretch; the last one is kept as it is."""
    stride = -(-len(x) // MOST_POINTS)
    if stride <= 1:
        return list(x), list(y)
    starts = range(0, len(x), stride)
    xs = [sum(x[i : i + stride]) / len(x[i : i + stride]) for i in starts]
    ys = [sum(y[i : i + stride]) / len(y[i : i + stride]) for i in starts]
    return [*xs, x[-1]], [*ys, y[-1]]


def _room(axis: Axes, values: Sequence[float]) -> None:
    """Limits with a little air, and from zero where that wastes little: a loss curve cut off at the foot looks steeper than it is."""
    low, high = min(values), max(values)
    air = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    axis.set_ylim(0 if 0 <= low < 0.5 * high else low - air, high + air)
