"""Asking for answers, and how likely the model finds the right ones: evaluation of what continues text (chat, text, labels as words)."""

from __future__ import annotations

import re
from collections.abc import Sequence as Many
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunery.data.render import Renderer, Sequence
from tunery.data.rows import Row
from tunery.evaluate.likelihood import likelihoods
from tunery.infer.engine import Engine
from tunery.infer.sampling import Sampling
from tunery.infer.torch_engine import TorchEngine
from tunery.metrics import find_labels
from tunery.progress import Progress
from tunery.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SLACK = 8
"""New tokens allowed beyond the longest right answer: room to be wrong in another length, but not to ramble."""


def predict(
    model: PreTrainedModel,
    renderer: Renderer,
    task: Task,
    rows: Many[Row],
    max_length: int,
    context: int,
    max_new_tokens: int | None,
    progress: Progress,
    when: str,
) -> list[dict[str, Any]]:
    """One dictionary a row: row, source, line, prompt, reference, prediction, nll, tokens, bytes (see `metrics.likelihood`).

    Where the answers are few, `label` is the one of them that the model finds likeliest after the prompt: what accuracy counts, so that a
    model that knows the answer but has not learned its form is not taken for one that knows nothing. A row longer than `max_length` is cut
    for its likelihood as it would be in training; its prompt is not.
    """
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
        lines[n]["bytes"] += len(renderer.tokenizer.decode(learned, skip_special_tokens=True).encode())
    if task.ANSWERS:
        engine = TorchEngine(model, renderer.tokenizer, renderer.stop_ids, context)
        for line, answer in zip(lines, _answers(engine, renderer, rows, max_new_tokens, progress, when), strict=True):
            line.update(answer)
        labels = getattr(renderer, "labels", None) or find_labels([line["reference"] for line in lines])
        if labels:
            for line, label in zip(lines, _likeliest(model, renderer, task, rows, labels, progress, when), strict=True):
                line["label"] = label
    return lines


def _likeliest(
    model: PreTrainedModel, renderer: Renderer, task: Task, rows: Many[Row], labels: Many[str], progress: Progress, when: str
) -> list[str]:
    """For each row the label with the least loss (through the end of turn) as its last answer; the prompt is computed once for all labels."""
    sequences = [answered(renderer, row, label) for row in rows for label in labels]
    nats, _ = likelihoods(model, task, sequences, progress, f"evaluate {when}: labels")
    return [labels[int(n)] for n in nats.reshape(len(rows), len(labels)).argmin(axis=1)]


def answered(renderer: Renderer, row: Row, answer: str) -> Sequence:
    """The row with another last answer, which alone counts."""
    if row.kind in ("completion", "label"):
        value = {**row.value, row.kind: answer}
    else:
        messages = [*row.value["messages"][:-1], {"role": "assistant", "content": answer}]
        value = {**row.value, "messages": messages, "weights": [0.0] * (len(messages) - 1) + [1.0]}
    return renderer.sequences(replace(row, value=value))[-1]


def _answers(
    engine: Engine, renderer: Renderer, rows: Many[Row], max_new_tokens: int | None, progress: Progress, when: str
) -> list[dict[str, str]]:
    prompts = [renderer.prompt(row) for row in rows]
    longest = max(len(engine.tokenizer(p.reference, add_special_tokens=False).input_ids) for p in prompts)
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
            "prediction": without_thought(engine.tokenizer.decode(ids, skip_special_tokens=True), p.reference),
        }
        for p, ids in zip(prompts, generated, strict=True)
    ]


def without_thought(prediction: str, reference: str) -> str:
    """The answer without the thinking before it, where the right answer has none: templates of thinking models write
    `<think>…</think>` before every answer, so the model learns to begin with it, and rows that show no thinking do not ask for it."""
    if "<think>" in reference:
        return prediction
    return re.sub(r"\A\s*<think>.*?</think>\s*", "", prediction, count=1, flags=re.DOTALL)


def _last_user_text(messages: list[dict[str, Any]] | None) -> str | None:
    for message in reversed(messages or []):
        if message["role"] == "user" and isinstance(message["content"], str):
            return message["content"]
    return None
