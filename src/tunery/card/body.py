"""What a card says below its metadata, in Markdown: results, training, how to load it, limits, hashes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from tunery.card import base, metadata
from tunery.report.content import comparison_rows
from tunery.report.format import count, duration, is_number, rate, significant, size
from tunery.report.words import headline, mapping, remarks

FORMS = {
    "adapter": "the adapter alone, in PEFT's format; it needs its base model",
    "merged": "the whole model, in transformers' format",
    "onnx": "the whole model for ONNX Runtime",
    "gguf": "the whole model for llama.cpp",
}


def of(report: Mapping[str, Any], form: str | None, how: str) -> str:
    """The card's text; `how` is the code that loads it."""
    parts = [
        f"# {metadata.title(report)}",
        _what(report, form),
        _results(report),
        "## How to load it\n\n" + how,
        _training(report),
        _proof(report, form),
        _limits(report),
        _environment(report),
        _hashes(report),
    ]
    return "\n\n".join(part for part in parts if part)


def _what(report: Mapping[str, Any], form: str | None) -> str:
    known, data = base.of(report), mapping(report.get("data"))
    name = f"[{known.title}](https://huggingface.co/{known.hub_id})" if known.hub_id else f"`{known.title}`"
    text = f"{name}, fine-tuned with {report.get('method')} for the task `{report.get('task')}`"
    if is_number(data.get("train_rows")):
        text += f" on {count(data['train_rows'])} rows"
    text += f" by Tunery {mapping(report.get('environment')).get('tunery') or ''}".rstrip() + "."
    if form in FORMS:
        text += f" This folder holds {FORMS[form]}."
    if known.rounded:
        text += f" The base was the published model, {known.rounded}: on its own weights the results may differ a little."
    return text


def _results(report: Mapping[str, Any]) -> str:
    top = headline(report)
    lines = ["## Results", f"**{top.title}.** {top.text}"]
    rows = comparison_rows(mapping(report.get("evaluation")))
    if rows:
        table = ["| metric | before | after | difference | p |", "|---|---|---|---|---|"]
        for row in rows:
            cells = [row["metric"].title, *(_bounded(row[k], row[f"{k}_bounds"]) for k in ("before", "after", "change")), row["p_value"]]
            table.append("| " + " | ".join(cells) + " |")
        lines.append("\n".join(table))
        rows_count = count(mapping(report.get("evaluation")).get("rows"))
        lines.append(f"In brackets: 95 % bounds, over {rows_count} rows that were not trained on ({metadata.test_file(report)}).")
    return "\n\n".join(lines)


def _bounded(value: str, bounds: str) -> str:
    return f"{value} ({bounds})" if bounds else value


def _training(report: Mapping[str, Any]) -> str:
    data, train = mapping(report.get("data")), mapping(report.get("train"))
    facts = [
        ("training rows", count(data.get("train_rows")) if "train_rows" in data else None),
        ("tokens seen", count(data["trained_tokens"]) if "trained_tokens" in data else None),
        ("tokens learned from", count(data["supervised_tokens"]) if "supervised_tokens" in data else None),
        ("steps", count(train["steps"]) if "steps" in train else None),
        ("time", duration(train["seconds"]) if "seconds" in train else None),
        ("tokens a second", rate(train["tokens_per_second"]) if "tokens_per_second" in train else None),
        ("trained parameters", count(train["trainable_parameters"]) if "trainable_parameters" in train else None),
        ("all parameters", count(train["total_parameters"]) if "total_parameters" in train else None),
        ("loss of the first step", significant(train["first_loss"]) if "first_loss" in train else None),
        ("loss of the last step", significant(train["final_loss"]) if "final_loss" in train else None),
        ("peak memory", size(train["peak_memory_bytes"]) if "peak_memory_bytes" in train else None),
    ]
    rows = [f"| {name} | {value} |" for name, value in facts if value is not None]
    return "## Training\n\n| | |\n|---|---|\n" + "\n".join(rows) if rows else ""


def _proof(report: Mapping[str, Any], form: str | None) -> str:
    exports = mapping(report.get("exports"))
    chosen = {form: mapping(exports.get(form))} if form else {name: mapping(entry) for name, entry in exports.items()}
    rows = []
    for name, entry in chosen.items():
        if is_number(entry.get("greedy_match")):
            figures = (entry.get("precision"), f"{entry['greedy_match']:.4f}", significant(entry.get("max_logit_difference")))
            rows.append(f"| {name} | " + " | ".join(str(f) for f in figures) + f" | {size(entry.get('bytes'))} |")
    if not rows:
        return ""
    table = "| form | precision | greedy match | largest logit difference | size |\n|---|---|---|---|---|\n" + "\n".join(rows)
    tokens = "the share of equal most likely tokens over 32 tokens of 50 prompts, along the float32 model's own answer"
    classes = "the share of equal most likely classes, over texts that the float32 model was given too"
    meant = classes if mapping(report.get("head")) else tokens
    return f"## Proof that it is the trained model\n\n{table}\n\nGreedy match: {meant}."


def _limits(report: Mapping[str, Any]) -> str:
    lines = list(remarks(report))
    if mapping(report.get("evaluation")):
        lines.append("The results are for rows like those of the test file; on other text it may do worse than its base model.")
    lines.append("It was not tested for harmful or biased answers, and may state what is not true, as its base model may.")
    known = base.of(report)
    if known.licence is None:
        lines.append("The licence of the base model is not known to Tunery, and applies to this model too: look it up before sharing it.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _environment(report: Mapping[str, Any]) -> str:
    found = mapping(report.get("environment"))
    lines = [f"| {name} | {value} |" for name, value in found.items() if value is not None]
    return "## Environment\n\n| | |\n|---|---|\n" + "\n".join(lines) if lines else ""


def _hashes(report: Mapping[str, Any]) -> str:
    """What it was made of, by SHA-256. Of a file only its name: where it lay is nobody's business."""
    inputs = mapping(report.get("inputs"))
    model = {name: value for name, value in mapping(mapping(inputs.get("model")).get("sha256")).items() if name.endswith(".safetensors")}
    data = {PurePosixPath(str(name).replace("\\", "/")).name: value for name, value in mapping(inputs.get("data")).items()}
    lines = [f"| base model, {name} | `{value}` |" for name, value in model.items()]
    lines += [f"| data, {name} | `{value}` |" for name, value in data.items()]
    return "## Made of\n\n| | SHA-256 |\n|---|---|\n" + "\n".join(lines) if lines else ""
