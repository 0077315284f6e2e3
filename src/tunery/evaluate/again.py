"""Measuring a finished run's model once more, on its own test rows or on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunery.data.rows import read_rows
from tunery.errors import InputError
from tunery.evaluate import by_preference, compare, predictions
from tunery.infer.open_engine import load_run
from tunery.models.load import context_length
from tunery.models.source import local_folder
from tunery.progress import Progress
from tunery.run import Run
from tunery.tasks import of


def evaluate_again(path: Path, data: Path | None, base: bool, progress: Progress) -> dict[str, Any]:
    """`{"rows": int, "metrics": {name: {"value", "low", "high"}}, "predictions": [...]}` of the trained model, or of its base.

    Without `data` the rows are those that the run was measured on. Raises InputError when there are none.
    """
    run = Run.open(path)
    recipe = run.recipe()
    if data is not None:
        rows = list(read_rows(str(data)))
    else:
        if not run.predictions_file("before").is_file():
            raise InputError(f"{path}: this run has no test rows; name a file with --data")
        rows = predictions.rows_of(run)
    model, tokenizer = load_run(run, with_adapter=not base, progress=progress.say)
    task, options = of(recipe.task)
    renderer = task.renderer(tokenizer, options)
    assert recipe.train.max_length is not None
    lines = predictions.predict(
        model,
        renderer,
        task,
        rows,
        recipe.train.max_length,
        context_length(local_folder(recipe.model)),
        recipe.evaluate.max_new_tokens,
        progress,
        "again",
    )
    if task.FORM == "pairs" and data is None:
        lines = by_preference.of_run(run, lines)
    names = compare.chosen_metrics(recipe.evaluate.metrics, lines, getattr(task, "METRICS", ()))
    return {"rows": len(lines), "metrics": compare.measure(names, lines, compare.known_labels(task, options)), "predictions": lines}
