"""The card's YAML block, which the hub reads: https://huggingface.co/docs/hub/model-cards#model-card-metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tunery.card import base
from tunery.report.format import MetricInfo, is_number
from tunery.report.words import mapping

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

TASKS = {"classify": "text-classification", "tag": "token-classification"}
"""A task as the hub calls it; every other task here writes text."""
LIBRARIES = {"adapter": "peft", "merged": "transformers"}
METRIC_TYPES = {"macro_f1": "f1", "token_f1": "f1", "entity_f1": "seqeval", "rouge_l": "rouge"}
"""The hub's identifier of a metric, where it is not the report's own name."""


def title(report: Mapping[str, Any]) -> str:
    """What the model is called: its base and how it was trained."""
    return f"{base.of(report).title} {report.get('method')} {report.get('task')}"


def of(report: Mapping[str, Any], form: str | None) -> ModelCardData:
    """The metadata of an export, or of a run when `form` is None."""
    from huggingface_hub import ModelCardData

    known, results = base.of(report), _results(report)
    more: dict[str, Any] = {"base_model_relation": "adapter" if form == "adapter" else "finetune"} if known.hub_id else {}
    return ModelCardData(
        base_model=known.hub_id,
        license=known.licence,
        library_name=LIBRARIES.get(form or ""),
        pipeline_tag=pipeline_tag(report),
        datasets=_hub_datasets(report) or None,
        tags=["tunery", "fine-tuned", str(report.get("method")), *([form] if form in ("onnx", "gguf") else [])],
        metrics=list(dict.fromkeys(r.metric_type for r in results)) or None,
        model_name=title(report) if results else None,
        eval_results=results or None,
        **more,
    )


def pipeline_tag(report: Mapping[str, Any]) -> str:
    """The hub's name of what the model does: a head classifies, everything else writes text."""
    return TASKS.get(str(report.get("task")), "text-generation") if mapping(report.get("head")) else "text-generation"


def test_file(report: Mapping[str, Any]) -> str:
    """The name of the file that the results are from, when the report tells one; else that they are held-out rows."""
    names = [PurePosixPath(name).name for name in mapping(mapping(report.get("inputs")).get("data"))]
    return next((name for name in names if "test" in name), "held-out rows")


def _results(report: Mapping[str, Any]) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    evaluation = mapping(report.get("evaluation"))
    results = []
    for name, entry in mapping(evaluation.get("after")).items():
        value = mapping(entry).get("value")
        if not is_number(value):
            continue
        shown = f"{MetricInfo.of(name).title} after training"
        if bounds := MetricInfo.of(name).bounds(mapping(entry)):
            shown += f" (95 % bounds {bounds})"
        results.append(
            EvalResult(
                task_type=pipeline_tag(report),
                dataset_type=test_file(report),
                dataset_name=f"{test_file(report)}, {evaluation.get('rows')} rows",
                metric_type=METRIC_TYPES.get(name, name),
                metric_value=value,
                metric_name=shown,
            )
        )
    return results


def _hub_datasets(report: Mapping[str, Any]) -> list[str]:
    """Data sets of the hub that the rows came from; a file of the user's own has no place in this field."""
    return [str(name) for name in mapping(report.get("inputs")).get("datasets") or []]
