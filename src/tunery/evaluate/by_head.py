"""Choosing classes: evaluation of models with a head, one class a text or a tag a word."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import TYPE_CHECKING, Any

import numpy as np

from tunery.data.render import Sequence
from tunery.data.rows import Row
from tunery.errors import DataError
from tunery.infer.head_engine import HeadEngine, TorchHead
from tunery.models.heads import Head
from tunery.progress import Progress
from tunery.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 256
"""Rows whose scores are held at a time."""

Line = dict[str, Any]


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
) -> list[Line]:
    """See `predictions.predict`; nothing is generated, so `max_new_tokens` is not read."""
    assert task.FORM in ("sequence", "token")
    engine = TorchHead(model, Head(task.FORM, renderer.labels), context)
    return lines(engine, renderer, rows, min(max_length, context), progress, f"evaluate {when}: labels")


def lines(engine: HeadEngine, renderer: Any, rows: Many[Row], max_length: int, progress: Progress, what: str) -> list[Line]:
    """What the model chooses for each row, cut at `max_length` as in training.

    Of texts `prediction` is a label and `probability` its probability. Of words `reference` and `prediction` are tags set apart by spaces,
    one a word; `lost_words` are those of which nothing was left, or of which the tokenizer makes nothing. They are predicted to be in no
    entity (with plain tags: to have none of the tags), and the loss does not see them.
    """
    found: list[Line] = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        sequences = []
        for rendered in renderer.batch(part):
            if isinstance(rendered, DataError):
                raise rendered
            sequences.append(rendered[0].cut(max_length, renderer.tail))
        for n, (row, sequence, logits) in enumerate(zip(part, sequences, engine.logits(sequences), strict=True), start):
            own = _chosen_label if engine.head.kind == "sequence" else _chosen_tags
            about = {"row": n, "source": row.source, "line": row.line}
            found.append({**about, **own(renderer, row, sequence, log_softmax(logits))})
        progress.show(what, min(start + CHUNK, len(rows)), len(rows))
    return found


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 log-probabilities over the last axis."""
    from scipy.special import log_softmax as of_scipy

    values: np.ndarray = of_scipy(logits.astype(np.float64), axis=-1)
    return values


def _chosen_label(renderer: Any, row: Row, sequence: Sequence, log_probs: np.ndarray) -> Line:
    assert sequence.marks is not None
    best, weight = int(log_probs.argmax()), float(sequence.weights[0])
    return {
        "nll": -float(log_probs[sequence.marks[0]]) * weight,
        "tokens": weight,
        "prompt": row.value["text"],
        "reference": row.value["label"],
        "prediction": renderer.labels[best],
        "probability": float(np.exp(log_probs[best])),
    }


def _chosen_tags(renderer: Any, row: Row, sequence: Sequence, log_probs: np.ndarray) -> Line:
    assert sequence.marks is not None
    learned = np.flatnonzero(sequence.marks >= 0)
    weights = sequence.weights[learned].astype(np.float64)
    tags = words_tags(renderer, row.value["tokens"], len(sequence.tokens), log_probs)
    return {
        "nll": -float((log_probs[learned, sequence.marks[learned]] * weights).sum()),
        "tokens": float(weights.sum()),
        "prompt": " ".join(row.value["tokens"]),
        "reference": " ".join(renderer.tags(row)),
        "prediction": " ".join(tag or renderer.lost for tag in tags),
        "lost_words": tags.count(None),
    }


def words_tags(renderer: Any, words: Many[str], length: int, log_probs: np.ndarray) -> list[str | None]:
    """The likeliest tag of each word by the scores (length, classes) of its tokens, cut at `length`; None for a word that was lost."""
    ids, places = renderer.placed(words)
    seen = length - (renderer.tail if len(ids) > length else 0)
    return [renderer.labels[int(log_probs[place].argmax())] if 0 <= place < seen else None for place in places]
