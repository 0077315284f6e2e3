"""From a run directory to what the page shows: every table as rows of text, every missing part as a sentence.

Nothing here is trusted to be there or to have the right form: a run that failed on its first step has a page too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunery.metrics import normalise
from tunery.metrics.classification import OTHER, confusion
from tunery.metrics.token_f1 import f1
from tunery.report import format as show
from tunery.report.charts import SMOOTHED_FROM
from tunery.report.format import MetricInfo, is_number
from tunery.report.words import SIGNIFICANT, headline, mapping, primary_metric, remarks
from tunery.run import Run

EXAMPLES = 10
LONGEST = 1200
"""Characters of a prompt or an answer that are shown; a page with a whole book in it helps nobody."""

RIGHT_OR_WRONG = ("exact_match", "accuracy", "macro_f1")
"""With one of these as the main metric, an answer is right or wrong; otherwise it is more or less near."""

MOST_LABELS = 20

TOKEN = "supervised token"
"""What the loss is a mean of, unless the report says otherwise: of a model with a head it is a label or a word."""

_BASELINES = {
    "majority": "The most common answer in the training rows",
    "tfidf_logistic_regression": "TF-IDF and logistic regression",
    "copy_source": "The question itself as the answer",
}


def gather(run: Run) -> dict[str, Any]:
    """Everything that the page's template reads."""
    report = mapping(_json(run, "report.json"))
    evaluation = mapping(report.get("evaluation"))
    before_lines, after_lines = (_lines(run.predictions_file(when)) for when in ("before", "after"))
    steps = _lines(run.metrics_file)
    unit = str(report.get("loss_unit") or TOKEN)
    return {
        "name": run.path.resolve().name,
        "report": {key: report.get(key) for key in ("model", "task", "method")},
        "missing_report": not report,
        "status": str(report.get("status") or "unfinished"),
        "headline": headline(report),
        "headline_metric": primary_metric(report),
        "remarks": remarks(report),
        "facts": _facts(report),
        "comparison": comparison_rows(evaluation),
        "before": mapping(evaluation.get("before")),
        "after": mapping(evaluation.get("after")),
        "rows": evaluation.get("rows"),
        "forgetting": _forgetting(mapping(evaluation.get("forgetting"))),
        "no_forgetting": mapping(report.get("reasons")).get("evaluate.forgetting_tokens"),
        "baselines": _baselines(mapping(evaluation.get("baselines")), evaluation.get("lost_words") is not None),
        "entities": _entities(mapping(evaluation.get("entities"))),
        "loss_unit": unit,
        "has_head": unit != TOKEN,
        "steps": steps,
        "smoothed": sum(is_number(step.get("loss")) for step in steps) >= SMOOTHED_FROM,
        "validated": any(is_number(step.get("valid_loss")) for step in steps),
        "predictions": _predictions(before_lines, after_lines, primary_metric(report)),
        "confusion": _confusion(after_lines, evaluation.get("labels")),
        "data": _table(mapping(report.get("data")), {**_DATA, "supervised_tokens": (f"Supervised {unit}s (learned)", show.count)}),
        "work": _table(mapping(report.get("train")), _WORK),
        "plan": _plan(report, mapping(_json(run, "plan.json"))),
        "stages": mapping(report.get("stages")),
        "exports": _exports(mapping(report.get("exports"))),
        "environment": [(str(k).replace("_", " "), show.plain(v)) for k, v in mapping(report.get("environment")).items()],
        "reasons": [(str(k), show.plain(v)) for k, v in mapping(report.get("reasons")).items()],
        "recipe": _text(run.recipe_file),
        "command": report.get("command"),
    }


_DATA = {
    "train_rows": ("Training rows", show.count), "valid_rows": ("Validation rows", show.count), "test_rows": ("Test rows", show.count),
    "trained_tokens": ("Tokens trained on", show.count), "supervised_tokens": ("Supervised tokens (learned)", show.count),
    "truncated_rows": ("Rows cut at the maximum length", show.count), "dropped_rows": ("Rows dropped", show.count),
    "duplicate_rows": ("Duplicate rows", show.count), "near_duplicate_rows": ("Near-duplicate rows", show.count),
    "leaked_rows": ("Rows shared by training and test", show.count),
}  # fmt: skip

_WORK = {
    "seconds": ("Training time", show.duration), "steps": ("Optimiser steps", show.count),
    "rows_per_second": ("Rows per second", show.rate),
    "tokens_per_second": ("Tokens per second", show.count), "peak_memory_bytes": ("Peak memory of the process", show.size),
    "peak_device_bytes": ("Peak memory of the device", show.size), "trainable_parameters": ("Parameters trained", show.count),
    "total_parameters": ("Parameters in all", show.count), "first_loss": ("Loss of the first step", show.significant),
    "final_loss": ("Loss of the last step", show.significant),
}  # fmt: skip


def _table(values: Mapping[str, Any], known: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of the known keys in their order, then any other plain value under its own name."""
    rows = [(known[key][0], known[key][1](values[key])) for key in known if values.get(key) is not None]
    rest = [
        (k.replace("_", " ").capitalize(), show.plain(v))
        for k, v in values.items()
        if k not in known and v is not None and not isinstance(v, list | dict)
    ]
    return rows + rest


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The few numbers under the headline: label, value, and what to add."""
    data, train, evaluation = (mapping(report.get(k)) for k in ("data", "train", "evaluation"))
    facts = []
    if is_number(data.get("train_rows")):
        tokens = data.get("trained_tokens")
        facts.append(("Trained on", f"{show.count(data['train_rows'])} rows", f"{show.count(tokens)} tokens" if is_number(tokens) else ""))
    if is_number(evaluation.get("rows")):
        facts.append(("Tested on", f"{show.count(evaluation['rows'])} rows", "held out"))
    if is_number(train.get("seconds")):
        facts.append(("Training time", show.duration(train["seconds"]), f"{show.count(train.get('tokens_per_second'))} tokens/s"))
    if is_number(train.get("peak_memory_bytes")):
        facts.append(("Peak memory", show.size(train["peak_memory_bytes"]), "of the whole process"))
    trained, total = train.get("trainable_parameters"), train.get("total_parameters")
    if is_number(trained) and is_number(total) and total:
        facts.append(("Parameters trained", show.percent(trained / total, 2), f"{_short(trained)} of {_short(total)}"))
    return facts


def _short(value: float) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f}{unit}"
    return f"{value:.0f}"


def comparison_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a metric of before, after, difference and p-value."""
    before, after, difference = (mapping(evaluation.get(k)) for k in ("before", "after", "difference"))
    return [_compared(MetricInfo.of(n), before.get(n), after.get(n), difference.get(n)) for n in dict.fromkeys([*after, *before])]


def _compared(metric: MetricInfo, before: Any, after: Any, difference: Any) -> dict[str, Any]:
    before, after, difference = mapping(before), mapping(after), mapping(difference)
    change, p = difference.get("difference"), difference.get("p_value")
    if not is_number(change) and is_number(before.get("value")) and is_number(after.get("value")):
        change = after["value"] - before["value"]
    significant = is_number(p) and p < SIGNIFICANT
    tone = (
        "neutral"
        if not significant or not is_number(change) or change == 0
        else "good"
        if (change > 0) == metric.higher_is_better
        else "bad"
    )
    return {
        "metric": metric,
        "before": metric.show(before.get("value")),
        "before_bounds": metric.bounds(before),
        "after": metric.show(after.get("value")),
        "after_bounds": metric.bounds(after),
        "change": metric.change(change),
        "change_bounds": metric.bounds(difference),
        "p_value": show.p_value(p),
        "tone": tone,
        "verdict": {"good": "better", "bad": "worse", "neutral": "within chance" if is_number(p) else "not tested"}[tone],
    }


def _forgetting(domains: Mapping[str, Any]) -> list[dict[str, Any]]:
    metric = MetricInfo.of("bits_per_byte")
    rows = []
    for domain, probe in domains.items():
        probe = mapping(probe)
        rows.append({
            "domain": str(domain), "tokens": show.count(probe.get("tokens")),
            **_compared(metric, probe.get("before"), probe.get("after"), probe.get("difference")),
        })  # fmt: skip
    return rows


def _baselines(found: Mapping[str, Any], of_words: bool) -> dict[str, Any]:
    """The metrics that were measured, and for each baseline its name and their values with bounds. of_words: a tag each."""
    titles = {**_BASELINES, "majority": "Each word's most common tag in the training rows"} if of_words else _BASELINES
    names = list(dict.fromkeys(name for values in found.values() for name in mapping(values)))
    infos = [MetricInfo.of(name) for name in names]
    rows = []
    for baseline, values in found.items():
        cells = [(info.show((one := mapping(mapping(values).get(info.name))).get("value")), info.bounds(one)) for info in infos]
        rows.append((titles.get(str(baseline), str(baseline)), cells))
    return {"metrics": infos, "rows": rows}


def _entities(types: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """For each type of entity: its name, precision, recall, F1, how many there are, and how many were found."""
    return [
        (
            str(name),
            *(show.percent(mapping(values).get(k)) for k in ("precision", "recall", "f1")),
            *(show.count(mapping(values).get(k)) for k in ("expected", "found")),
        )
        for name, values in types.items()
    ]


def _predictions(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], primary: str | None) -> dict[str, Any]:
    """Ten answers, evenly spread over the test rows, so that nobody picked them; and how many answers changed sides."""
    old = {line.get("row"): line for line in before if "prediction" in line}
    new = {line.get("row"): line for line in after if "prediction" in line}
    rows = [row for row in (new or old) if not (old and new) or (row in old and row in new)]
    judged = primary in RIGHT_OR_WRONG
    chosen = sorted({round(i * (len(rows) - 1) / max(1, EXAMPLES - 1)) for i in range(min(EXAMPLES, len(rows)))})
    examples = []
    for place in chosen:
        row = rows[place]
        known = new.get(row) or old[row]
        examples.append({
            "row": place + 1, "where": f"{known.get('source', '')}:{known.get('line', '')}".strip(":"),
            "prompt": _cut(known.get("prompt")), "reference": _cut(_words(known, "reference")),
            "answers": [(when, *_answer(side.get(row), judged)) for when, side in (("Before", old), ("After", new))],
        })  # fmt: skip
    flips = None
    if judged and old and new:
        pairs = [(_right(old[r]), _right(new[r])) for r in rows]
        flips = {
            name: pairs.count(pair)
            for name, pair in {"learned": (False, True), "kept": (True, True), "lost": (True, False), "missed": (False, False)}.items()
        }
    return {"examples": examples, "total": len(rows), "flips": flips, "have": {"before": bool(before), "after": bool(after)}}


def _counted(line: Mapping[str, Any]) -> str:
    """What accuracy counts: the likeliest label where there are labels, else what the model said."""
    return str(line.get("label", line.get("prediction", "")))


def _right(line: Mapping[str, Any]) -> bool:
    return normalise(_counted(line)) == normalise(str(line.get("reference", "")))


def _answer(line: Mapping[str, Any] | None, judged: bool) -> tuple[dict[str, str] | None, str, str]:
    """The text, its class, and what is said of it."""
    if line is None:
        return None, "neutral", ""
    text = _cut(_words(line, "prediction"))
    if "lost_words" in line:
        pairs = list(zip(str(line.get("prediction")).split(), str(line.get("reference")).split(), strict=False))
        right = sum(a == b for a, b in pairs)
        return text, "good" if right == len(pairs) else "neutral", f"{right} of {len(pairs)} tags right"
    sure = f" (probability {show.percent(line['probability'])})" if is_number(line.get("probability")) else ""
    said = (
        sure
        if "label" not in line
        else ""
        if _counted(line) == str(line.get("prediction", ""))
        else f" (likeliest label: {_counted(line)})"
    )
    if _right(line):
        return text, "good", f"✓ right{said}"
    if judged:
        return text, "bad", f"✗ wrong{said}"
    near = f1(str(line.get("prediction", "")), str(line.get("reference", "")))
    return text, "neutral", f"token F1 {near:.2f}"


def _words(line: Mapping[str, Any], side: str) -> Any:
    """An answer as it is shown: of a tagger the words, with the tags of those that have one."""
    if "lost_words" not in line:
        return line.get(side)
    pairs = zip(str(line.get("prompt")).split(), str(line.get(side)).split(), strict=False)
    return " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in pairs)


def _cut(text: Any) -> dict[str, str]:
    text = str(text if text is not None else "")
    rest = len(text) - LONGEST
    return {"text": text if rest <= 0 else text[:LONGEST] + "…", "rest": f"{rest:,} more characters" if rest > 0 else ""}


def _confusion(lines: Sequence[Mapping[str, Any]], labels: Any) -> dict[str, Any] | None:
    """Which label was taken for which, after training; the shares of a row colour its cells."""
    lines = [line for line in lines if "prediction" in line and "reference" in line]
    if not lines or not isinstance(labels, list) or not 2 <= len(labels) <= MOST_LABELS:
        return None
    names = [str(label) for label in labels]
    counts = confusion([_counted(line) for line in lines], [str(line["reference"]) for line in lines], names).tolist()
    columns = [*names, OTHER]
    if not any(row[-1] for row in counts):
        counts, columns = [row[:-1] for row in counts], names
    return {
        "columns": columns,
        "rows": [
            (name, [(n, round(100 * n / max(1, sum(row))), i == j) for j, n in enumerate(row)], sum(row))
            for i, (name, row) in enumerate(zip(names, counts, strict=True))
        ],
    }


def _plan(report: Mapping[str, Any], file: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Planned against measured: what, planned, measured, how far off."""
    planned, measured = {**file, **mapping(report.get("plan"))}, mapping(report.get("train"))
    rows = []
    for key, label, form in (("peak_memory_bytes", "Peak memory", show.size), ("seconds", "Training time", show.duration)):
        guess, real = planned.get(key), measured.get(key)
        if is_number(guess):
            off = f"{100 * (guess - real) / real:+.0f}{show.NARROW}%".replace("-", "−") if is_number(real) and real else show.DASH
            rows.append((label, form(guess), form(real), off))
    return rows


def _exports(exports: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, entry in exports.items():
        entry = mapping(entry)
        difference, match = entry.get("max_logit_difference"), entry.get("greedy_match")
        rest = {k: v for k, v in entry.items() if k not in ("path", "precision", "max_logit_difference", "greedy_match", "error")}
        rows.append({
            "name": str(name), "path": show.plain(entry.get("path")), "precision": show.plain(entry.get("precision")),
            "difference": show.significant(difference), "match": show.percent(match, 2), "error": str(entry.get("error") or ""),
            "rest": "; ".join(_named(k, v) for k, v in rest.items() if not isinstance(v, dict)),
        })  # fmt: skip
    return rows


def _named(key: str, value: Any) -> str:
    if key.endswith("bytes"):
        return f"{key.removesuffix('bytes').replace('_', ' ').strip() or 'size'}: {show.size(value)}"
    return f"{key.replace('_', ' ')}: {show.plain(value)}"


def _json(run: Run, name: str) -> Any:
    try:
        return run.read_json(name)
    except (OSError, ValueError):
        return None


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; none when it is not there. A line that a kill cut short is left out."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            value = json.loads(line) if line.strip() else None
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
