"""A check as people see it: a table, the lengths as bars, the problems, and a few rows with what is learned in colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunery.data.check import CheckResult
from tunery.data.stats import FEW, rare_labels

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tunery.data.prepare import Sample
    from tunery.data.stats import DataStats

SAMPLES = 3
LONGEST_SAMPLE = 1500
"""Characters of a sample that are shown; of a longer one the middle is left out."""
BAR = 40
MOST_LABELS = 30
FAR_FROM_HALF = 0.15
"""From here on the share of longer preferred answers is shown as a warning: it is far more than chance in a few hundred pairs."""


def show(result: CheckResult, console: Console) -> None:
    """Print the check on the console."""
    from rich.text import Text

    stats = result.prepared.stats
    if stats.sources and any(s.rows for s in stats.splits.values()):
        console.print(_table(stats))
        console.print(_histogram(stats))
        _show_labels(stats, console)
        _show_lengths_of_pairs(stats, console)
        _show_near(stats, console)
        _show_samples(result.prepared.samples(SAMPLES), console)
    if result.good:
        console.print(Text("The data is good.", style="bold green"))
        return
    count = result.problem_count
    console.print(Text(f"{count} problem{'s' if count > 1 else ''}: training would refuse this data.", style="bold red"))
    for error in result.problems:
        console.print(Text(f"  {error}"), soft_wrap=True)  # an editor finds FILE:LINE only on an unbroken line
    if count > len(result.problems):
        console.print(Text(f"  … and {count - len(result.problems)} more", style="dim"))


def _table(stats: DataStats) -> Table:
    from rich.table import Table

    sides = [s for s in ("train", "valid", "test") if s in stats.splits]
    table = Table(title="Data", title_justify="left")
    table.add_column("")
    for side in sides:
        table.add_column(side, justify="right")
    rows = {
        "rows": "rows",
        "tokens": "tokens",
        "labels to learn" if stats.labels else "supervised tokens": "supervised_tokens",
        "longest row, tokens": "longest",
        "truncated rows": "truncated_rows",
        "dropped rows": "dropped_rows",
        "duplicate rows": "duplicate_rows",
    }
    for title, key in rows.items():
        table.add_row(title, *(f"{getattr(stats.splits[s], key):,}" for s in sides))
    for other in ("train", "valid"):
        if any(f"{other}/{s}" in stats.shared for s in sides):
            table.add_row(f"rows also in {other}", *(_count(stats.shared.get(f"{other}/{s}")) for s in sides))
    near = stats.near_duplicates
    if near is not None:
        table.add_row("near-duplicates on the same side", *(_count(near.rows.get(s)) for s in sides))
        for other in ("train", "valid"):
            if any(f"{other}/{s}" in stats.shared for s in sides):
                table.add_row(
                    f"near-duplicates of {other}",
                    *(_count(near.across.get(f"{other}/{s}", 0) if f"{other}/{s}" in stats.shared else None) for s in sides),
                )
    return table


def _histogram(stats: DataStats) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Lengths in train, tokens", title_justify="left", box=None, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right")
    bins = stats.splits["train"].histogram
    most = max((count for _, _, count in bins), default=1)
    for low, high, count in bins:
        # A bin with anything in it shows at least a sliver.
        table.add_row(f"{low}–{high}", Text("█" * round(BAR * count / most) or ("▏" if count else ""), style="cyan"), f"{count:,}")
    return table


def _show_labels(stats: DataStats, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    if not stats.labels:
        return
    sides = list(stats.labels)
    table = Table(title="Labels", title_justify="left")
    table.add_column("")
    for side in sides:
        table.add_column(side, justify="right")
    counts = stats.labels["train"]
    for label in sorted(counts, key=lambda name: (-counts[name], name))[:MOST_LABELS]:
        table.add_row(Text(label), *(f"{stats.labels[side][label]:,}" for side in sides))
    if len(counts) > MOST_LABELS:
        table.add_row(f"… and {len(counts) - MOST_LABELS} more", *("" for _ in sides))
    console.print(table)
    rare = rare_labels(stats)
    if rare:
        named = ", ".join(f"{label} ({count})" for label, count in list(rare.items())[:MOST_LABELS])
        console.print(
            Text(f"Hardly anything is learned of a label that is there fewer than {FEW} times: {named}.", style="yellow"), soft_wrap=True
        )


def _show_lengths_of_pairs(stats: DataStats, console: Console) -> None:
    from rich.text import Text

    share = stats.longer_preferred
    if share is not None:
        line = f"The preferred answer is the longer one in {share:.0%} of the pairs; who only looks at the length is right that often."
        console.print(Text(line, style="yellow" if abs(share - 0.5) > FAR_FROM_HALF else ""), soft_wrap=True)


def _show_near(stats: DataStats, console: Console) -> None:
    from rich.text import Text

    near = stats.near_duplicates
    if near is None:
        return
    if near.examples:
        console.print(Text("Near-duplicates, for example:"))
        for first, second, jaccard in near.examples:
            console.print(Text(f"  {first} and {second} (Jaccard index {jaccard:.2f})"), soft_wrap=True)
    if near.left_out:
        console.print(
            Text(
                f"Near-duplicates were looked for among the first {near.examined:,} different rows; {near.left_out:,} were not compared.",
                style="yellow",
            )
        )


def _show_samples(samples: list[Sample], console: Console) -> None:
    from rich.text import Text

    if not samples:
        return
    line = Text("Rows as the model sees them: ")
    line.append("learned", style="bold green").append(", ").append("not learned", style="dim")
    console.print(line)
    for sample in samples:
        console.print(Text(f"{sample.source}:{sample.line}", style="bold"), soft_wrap=True)
        console.print(_coloured(sample))


def _coloured(sample: Sample) -> Text:
    from rich.text import Text

    text = Text()
    for words, weight in sample.stretches:
        style = "dim" if not weight else "bold green" if weight == 1 else "green"
        text.append(
            words.replace("\r", "␍").replace("\x1b", "␛").rstrip("\n") + "⏎\n" * (len(words) - len(words.rstrip("\n"))), style=style
        )
    if len(text) > LONGEST_SAMPLE:
        half = LONGEST_SAMPLE // 2
        text = Text.assemble(text[:half], ("\n[… middle left out …]\n", "yellow"), text[-half:])
    return text


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
