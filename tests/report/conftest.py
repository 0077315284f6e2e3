"""A made-up but plausible run directory, so that the page can be tested without training anything."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunery.metrics import get, interval, paired
from tunery.metrics.base import TextMetric
from tunery.metrics.likelihood import LikelihoodMetric
from tunery.recipe import from_mapping
from tunery.run import Run

LABELS = ["business", "culture", "health", "politics", "science", "sports", "technology", "weather"]
HEADLINES = {
    "business": "Shares of the chip maker fall after a weak forecast", "culture": "A lost painting hangs in the town museum again",
    "health": "New vaccine halves hospital stays, a study of 40,000 finds", "politics": "Parliament votes on the budget after a long night",
    "science": "Astronomers find water in the air of a distant planet", "sports": "Late goal sends the home team into the final",
    "technology": "Open model writes code on a laptop without the cloud", "weather": "Storm brings snow down to the valleys on Sunday",
}  # fmt: skip
METRICS = ("accuracy", "macro_f1", "exact_match", "loss", "bits_per_byte")


def lines(share_right: float, seed: int, rows: int = 400) -> list[dict[str, Any]]:
    """Predictions of a model that is right about that often."""
    draw, truth = random.Random(seed), random.Random(0)
    made = []
    for row in range(rows):
        reference = truth.choice(LABELS)
        prediction = reference if draw.random() < share_right else draw.choice([*LABELS, "The headline is about"])
        prompt = f"{HEADLINES[reference]} (edition {row}). Which section of the newspaper is this?"
        nll = draw.uniform(0.02, 1.0) if prediction == reference else draw.uniform(1.0, 6.0)
        made.append({
            "row": row, "source": "test.jsonl", "line": row + 1, "prompt": prompt, "reference": reference, "prediction": prediction,
            "nll": nll, "tokens": 2.0, "bytes": len(reference),
        })  # fmt: skip
    return made


def evaluation(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": len(before), "primary": "accuracy", "labels": LABELS, "before": {}, "after": {}, "difference": {}}
    for name in METRICS:
        metric = get(name, LABELS)
        sides = []
        for side in (before, after):
            if isinstance(metric, LikelihoodMetric):
                sides.append(metric.rows_from(*([line[k] for line in side] for k in ("nll", "tokens", "bytes"))))
            else:
                assert isinstance(metric, TextMetric)
                sides.append(metric.rows([line["prediction"] for line in side], [line["reference"] for line in side]))
        found["before"][name], found["after"][name] = (interval(metric, rows, samples=200) for rows in sides)
        found["difference"][name] = paired(metric, sides[0], sides[1], samples=200, permutations=500)
    found["forgetting"] = {
        "documentation": {
            "tokens": 25_344,
            "before": {"value": 1.021, "low": 0.972, "high": 1.071}, "after": {"value": 1.034, "low": 0.984, "high": 1.085},
            "difference": {"difference": 0.013, "low": 0.009, "high": 0.017, "p_value": 0.0009995},
        },
        "code": {
            "tokens": 25_466,
            "before": {"value": 0.842, "low": 0.801, "high": 0.885}, "after": {"value": 0.843, "low": 0.802, "high": 0.886},
            "difference": {"difference": 0.001, "low": -0.002, "high": 0.004, "p_value": 0.48},
        },
    }  # fmt: skip
    return found


def report_of(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "schema": 1, "model": "smollm2-135m", "method": "lora", "task": "chat", "status": "succeeded",
        "data": {"train_rows": 2000, "trained_tokens": 251_904, "supervised_tokens": 7_912, "truncated_rows": 0, "dropped_rows": 0,
                 "duplicate_rows": 3, "leaked_rows": 0},
        "train": {
            "seconds": 412.7, "steps": 63, "rows_per_second": 4.85, "tokens_per_second": 610.4, "peak_memory_bytes": 2_310_000_000,
            "trainable_parameters": 4_884_480, "total_parameters": 139_399_872, "first_loss": 3.412, "final_loss": 0.381,
        },
        "plan": {"peak_memory_bytes": 2_220_000_000, "seconds": 431.0},
        "evaluation": evaluation(before, after),
        "exports": {
            "adapter": {"path": "adapter", "precision": "fp32", "max_logit_difference": 0.0, "greedy_match": 1.0, "bytes": 19_600_000},
            "merged": {"path": "merged", "precision": "fp32", "max_logit_difference": 0.0000312, "greedy_match": 1.0, "bytes": 538_000_000},
            "onnx": {"path": "onnx", "precision": "int4", "max_logit_difference": 1.93, "greedy_match": 0.9312, "bytes": 121_000_000},
        },
        "environment": {"python": "3.11.7", "torch": "2.13.0", "cpu": "Some CPU @ 2.60GHz, 2 cores", "device": "cpu", "seed": 0},
        "command": "tunery train examples/headlines/recipe.yaml --run runs/headlines",
        "reasons": {"train.precision": "bf16: this CPU has avx512_bf16", "train.tokens_per_step": "4096: the usual for a model this small"},
        "stages": {"data": 3.1, "evaluate before": 71.0, "train": 412.7, "evaluate after": 64.2, "export": 38.9},
    }  # fmt: skip


def steps_of(count: int) -> list[dict[str, Any]]:
    draw, made = random.Random(5), []
    for step in range(1, count + 1):
        done = step / count
        line = {
            "step": step, "loss": 0.35 + 3.0 * math.exp(-6 * done) + draw.gauss(0, 0.08),
            "learning_rate": 5e-4 * min(step / 4, (1 + math.cos(math.pi * done)) / 2),
            "grad_norm": 1.0, "tokens": 4000, "supervised_tokens": 125, "seconds": 6.5 * step,
        }  # fmt: skip
        if step % 15 == 0:
            line["valid_loss"] = 0.42 + 3.0 * math.exp(-6 * done)
        made.append(line)
    return made


@pytest.fixture(scope="session")
def full_report() -> dict[str, Any]:
    """A report with every optional part. Read only: copy it before changing it."""
    return report_of(lines(0.45, 1), lines(0.84, 2))


def write_run(path: Path, report: dict[str, Any] | None, steps: int = 63) -> Run:
    """A run directory with that report."""
    recipe = from_mapping({
        "model": "smollm2-135m", "data": {"train": "train.jsonl", "valid": 0.05, "test": "test.jsonl"},
        "method": {"name": "lora", "rank": 16},
        "train": {"learning_rate": 5e-4, "tokens_per_step": 4096}, "export": ["adapter", "merged", {"onnx": "int4"}],
    })  # fmt: skip
    run = Run.create(path, recipe)
    if report is not None:
        run.write_json("report.json", report)
        run.write_json("plan.json", {"peak_memory_bytes": 2_220_000_000, "seconds": 431.0})
    for when, share, seed in (("before", 0.45, 1), ("after", 0.84, 2)):
        text = "".join(json.dumps(line) + "\n" for line in lines(share, seed))
        run.predictions_file(when).write_text(text, encoding="utf-8")
    run.metrics_file.write_text("".join(json.dumps(s) + "\n" for s in steps_of(steps)), encoding="utf-8")
    return run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """`make_run(report, steps=63)`: a run directory with that report."""

    def make(report: dict[str, Any] | None, steps: int = 63) -> Run:
        return write_run(tmp_path / "headlines", report, steps)

    return make
