"""What the model says to each test row, and how likely it finds the right answer: one line a row, kept in the run.

Everything that is reported is computed from these lines, so a report can be made again, or checked by anyone, without the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.progress import Progress
from tunery.run import write_text
from tunery.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunery.data.render import Renderer
    from tunery.data.rows import Row
    from tunery.infer.engine import Engine

SLACK = 8
"""New tokens allowed beyond the longest right answer: room to be wrong in another length, but not to ramble."""


def predict(
    model: PreTrainedModel,
    engine: Engine,
    renderer: Renderer,
    task: Task,
    rows: Sequence[Row],
    max_length: int,
    max_new_tokens: int | None,
    progress: Progress,
    when: str,
) -> list[dict[str, Any]]:
    """One dictionary a row: row, source, line, prompt, reference, prediction, nll, tokens, bytes (see `metrics.likelihood`).

    A row longer than `max_length` is cut for its likelihood as it would be in training; its prompt is not.
    """
    from tunery.evaluate.likelihood import likelihoods

    sequences, owner = [], []
    for n, row in enumerate(rows):
        for sequence in renderer.sequences(row):
            sequences.append(sequence.cut(max_length) if len(sequence.tokens) > max_length else sequence)
            owner.append(n)
    nats, weights = likelihoods(model, task, sequences, progress, f"evaluate {when}: likelihood")
    lines: list[dict[str, Any]] = []
    for n, row in enumerate(rows):
        lines.append({"row": n, "source": row.source, "line": row.line, "nll": 0.0, "tokens": 0.0, "bytes": 0})
    for sequence, n, nat, weight in zip(sequences, owner, nats, weights, strict=True):
        lines[n]["nll"] += float(nat)
        lines[n]["tokens"] += float(weight)
        learned = sequence.tokens[sequence.weights > 0].tolist()
        lines[n]["bytes"] += len(engine.tokenizer.decode(learned, skip_special_tokens=True).encode())
    if task.ANSWERS:
        for line, answer in zip(lines, _answers(engine, renderer, rows, max_new_tokens, progress, when), strict=True):
            line.update(answer)
    return lines


def _answers(
    engine: Engine, renderer: Renderer, rows: Sequence[Row], max_new_tokens: int | None, progress: Progress, when: str
) -> list[dict[str, str]]:
    prompts = [renderer.prompt(row) for row in rows]
    longest = max(len(engine.tokenizer(p.reference, add_special_tokens=False).input_ids) for p in prompts)
    from tunery.infer.sampling import Sampling

    what = f"evaluate {when}: answers"
    generated = engine.generate(
        [p.ids for p in prompts],
        Sampling(max_new_tokens=max_new_tokens or longest + SLACK),
        on_progress=lambda done, total: progress.show(what, done, total),
    )
    return [
        {
            "prompt": _last_user_text(p.messages) or engine.tokenizer.decode(p.ids, skip_special_tokens=True),
            "reference": p.reference,
            "prediction": engine.tokenizer.decode(ids, skip_special_tokens=True),
        }
        for p, ids in zip(prompts, generated, strict=True)
    ]


def _last_user_text(messages: list[dict[str, Any]] | None) -> str | None:
    for message in reversed(messages or []):
        if message["role"] == "user" and isinstance(message["content"], str):
            return message["content"]
    return None


def write(file: Path, lines: list[dict[str, Any]]) -> None:
    """As JSONL, whole or not at all."""
    write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read(file: Path) -> list[dict[str, Any]]:
    """The lines that `write` wrote."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
