"""What the model says to each test row: one line a row, kept in the run.

Everything that is reported is computed from these lines, so a report can be made again, or checked by anyone, without the model.
How a line comes about depends on the task's form; there is one file for each.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence as Many
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.data.rows import Row, read_rows
from tunery.errors import InputError
from tunery.progress import Progress
from tunery.run import Run, write_text
from tunery.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FILES = {"tokens": "by_answer", "sequence": "by_head", "token": "by_head", "pairs": "by_preference"}
"""For each form of task the file whose `predict` measures it."""


def predict(
    model: PreTrainedModel,
    renderer: Any,
    task: Task,
    rows: Many[Row],
    max_length: int,
    context: int,
    max_new_tokens: int | None,
    progress: Progress,
    when: str,
) -> list[dict[str, Any]]:
    """One dictionary a row, in the rows' order: `row`, `source`, `line`, and what the task's form gives.

    nll, tokens: the row's loss as a sum in nats and what that is divided by. prompt, reference, prediction: texts, where there is an answer.
    bytes: of the supervised text, where the model predicts text. label: the answer that metrics of labels count, where it is not the
    prediction. renderer: the task's own. context: the most tokens that the model takes. Raises DataError for a row that cannot be used.
    """
    lines: list[dict[str, Any]] = importlib.import_module(f"tunery.evaluate.{_FILES[task.FORM]}").predict(
        model, renderer, task, rows, max_length, context, max_new_tokens, progress, when
    )
    return lines


def write(file: Path, lines: list[dict[str, Any]]) -> None:
    """As JSONL, whole or not at all."""
    write_text(file, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines))


def read(file: Path) -> list[dict[str, Any]]:
    """The lines that `write` wrote."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def rows_of(run: Run) -> list[Row]:
    """The test rows that a run was measured on, in the order of its predictions. Raises InputError when one is no longer there."""
    lines = read(run.predictions_file("before"))
    found: dict[tuple[str, int], Row] = {}
    for source in dict.fromkeys(line["source"] for line in lines):
        found.update({(source, row.line): row for row in read_rows(source, run.path, on_problem=lambda _: None)})
    missing = next((line for line in lines if (line["source"], line["line"]) not in found), None)
    if missing is not None:
        raise InputError(f"{missing['source']}:{missing['line']}: this test row of the run is no longer there; put the file back")
    return [found[line["source"], line["line"]] for line in lines]
