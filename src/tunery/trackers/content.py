"""What trackers are told: a recipe as flat settings, a line as numbers, a report as numbers with names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunery.recipe import Recipe

LEFT_OUT = ("track",)
"""Keys of a recipe that no tracker is told: where a run is tracked may hold a password, and says nothing about the model."""


def settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe as `train.learning_rate: 0.0002`: the keys that `--set` takes. Settings that are not set are left out."""
    flat: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else str(name))
        elif isinstance(value, list | tuple):
            if value and all(isinstance(inner, str) for inner in value):
                flat[key] = ", ".join(value)
            else:
                for number, inner in enumerate(value):
                    walk(inner, f"{key}.{number}")
        elif value is not None:
            flat[key] = value

    walk({k: v for k, v in recipe.as_written().items() if k not in LEFT_OUT}, "")
    return flat


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, `step` left out."""
    return {k: float(v) for k, v in line.items() if k != "step" and _is_number(v)}


def results(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report that compare runs: `before/exact_match`, `after/exact_match` with bounds, `export/onnx/greedy_match`,
    `train/peak_memory_bytes`, `data/train_rows`."""
    found: dict[str, float] = {}
    evaluation = report.get("evaluation") or {}
    for when in ("before", "after"):
        for metric, value in (evaluation.get(when) or {}).items():
            found |= {
                f"{when}/{metric}{tail}": float(value[key])
                for key, tail in (("value", ""), ("low", "/low"), ("high", "/high"))
                if _is_number(value.get(key))
            }
    for name, entry in (report.get("exports") or {}).items():
        found |= {
            f"export/{name}/{key}": float(entry[key])
            for key in ("greedy_match", "max_logit_difference", "bytes")
            if _is_number(entry.get(key))
        }
    for part in ("train", "data"):
        found |= {f"{part}/{key}": float(value) for key, value in (report.get(part) or {}).items() if _is_number(value)}
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
