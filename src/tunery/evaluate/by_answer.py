"""Asking for answers, and how likely the model finds the right ones: evaluation of what continues text (chat, text, labels as words)."""

from __future__ import annotations

import re
from collections.abc import Sequence as Many
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tunery.data.render import Prompt, Renderer, Sequence
from tunery.data.rows import Row
from tunery.evaluate import one_reading
from tunery.evaluate.likelihood import likelihoods
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
    learned: list[list[Sequence]] = []
    for row in rows:
        learned.append([s.cut(max_length) if len(s.tokens) > max_length else s for s in renderer.sequences(row)])
    lines: list[dict[str, Any]] = []
    for n, (row, sequences) in enumerate(zip(rows, learned, strict=True)):
        texts = [renderer.tokenizer.decode(s.tokens[s.weights > 0].tolist(), skip_special_tokens=True) for s in sequences]
        lines.append({"row": n, "source": row.source, "line": row.line, "nll": 0.0})
        lines[-1] |= {"tokens": float(sum(s.weights[1:].sum() for s in sequences)), "bytes": sum(len(t.encode()) for t in texts)}
    if not (task.ANSWERS and rows):
        for line, own_nats in zip(lines, _likelihoods(model, task, learned, progress, f"evaluate {when}: likelihood"), strict=True):
            line["nll"] = float(own_nats.sum())
        return lines
    prompts = [renderer.prompt(row) for row in rows]
    asked = [p.ids for p in prompts]
    new_tokens = max_new_tokens or _room(renderer, prompts)
    labels = getattr(renderer, "labels", None) or find_labels([p.reference for p in prompts]) or ()
    named = [[answered(renderer, row, label) for label in labels] for row in rows]
    given = [[*own, *others] for own, others in zip(learned, named, strict=True)]
    if one_reading.able(model, task, given, asked, new_tokens):

        def show(done: int, total: int) -> None:
            progress.show(f"evaluate {when}", done, total)

        nats, said = one_reading.ask(model, given, asked, new_tokens, context, renderer.stop_ids, show)
    else:  # layers or a method that must see each row by itself: one after the other
        both = (
            _likelihoods(model, task, part, progress, f"evaluate {when}: {what}")
            for part, what in ((learned, "likelihood"), (named, "labels"))
        )
        nats = [np.concatenate(pair) for pair in zip(*both, strict=True)]
        said = TorchEngine(model, renderer.tokenizer, renderer.stop_ids, context).generate(
            asked, Sampling(max_new_tokens=new_tokens), lambda done, total: progress.show(f"evaluate {when}: answers", done, total)
        )
    for line, own, answers, prompt, tokens in zip(lines, learned, nats, prompts, said, strict=True):
        line |= {"nll": float(answers[: len(own)].sum()), **_answer(renderer, prompt, tokens)}
        if labels:
            line["label"] = labels[int(answers[len(own) :].argmin())]
    return lines


def _likelihoods(model: PreTrainedModel, task: Task, sequences: Many[Many[Sequence]], progress: Progress, what: str) -> list[np.ndarray]:
    """For each row the nats of its sequences."""
    nats, _ = likelihoods(model, task, [s for row in sequences for s in row], progress, what)
    return np.split(nats, np.cumsum([len(row) for row in sequences])[:-1])


def answered(renderer: Renderer, row: Row, answer: str) -> Sequence:
    """The row with another last answer, which alone counts."""
    if row.kind in ("completion", "label"):
        value = {**row.value, row.kind: answer}
    else:
        messages = [*row.value["messages"][:-1], {"role": "assistant", "content": answer}]
        value = {**row.value, "messages": messages, "weights": [0.0] * (len(messages) - 1) + [1.0]}
    return renderer.sequences(replace(row, value=value))[-1]


def _room(renderer: Renderer, prompts: Many[Prompt]) -> int:
    """The most new tokens of an answer."""
    return max(len(renderer.tokenizer(p.reference, add_special_tokens=False).input_ids) for p in prompts) + SLACK


def _answer(renderer: Renderer, prompt: Prompt, tokens: list[int]) -> dict[str, str]:
    """The texts of a prediction: what was asked, what is right, what the model said."""
    decode = renderer.tokenizer.decode
    return {
        "prompt": _last_user_text(prompt.messages) or decode(prompt.ids, skip_special_tokens=True),
        "reference": prompt.reference,
        "prediction": without_thought(decode(tokens, skip_special_tokens=True), prompt.reference),
    }


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
