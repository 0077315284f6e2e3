"""Does an exported model still do the task? Its primary metric on the test rows, against the trained model's bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunery import metrics
from tunery.data.pairs import cut, part
from tunery.evaluate.by_answer import answered, without_thought
from tunery.evaluate.by_preference import scores
from tunery.evaluate.compare import BY_LABEL
from tunery.infer.sampling import Sampling
from tunery.metrics import LikelihoodMetric, PairMetric
from tunery.progress import Progress

if TYPE_CHECKING:
    from tunery.data.render import Renderer
    from tunery.data.rows import Row
    from tunery.infer.engine import Engine


def held_out(
    engine: Engine,
    renderer: Renderer,
    rows: Sequence[Row],
    after: Sequence[dict[str, Any]],
    name: str,
    bounds: metrics.Interval,
    max_new_tokens: int,
    max_length: int,
    progress: Progress,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The metric `name` of the exported model on the rows that `after` was measured on, and whether it stays within the `bounds`.

    Better than the bounds is within them. labels: the answers that there are, where they are few.
    """
    metric = metrics.get(name, labels)
    if isinstance(metric, LikelihoodMetric):
        own = [sum(_nats(engine, s) for s in _measured(renderer, row, max_length)) for row in rows]
        stats = metric.rows_from(own, [line["tokens"] for line in after], [line["bytes"] for line in after])
    elif isinstance(metric, PairMetric):
        sides = [_sides(renderer, row, max_length) for row in rows]
        both = [scores(line, [-_nats(engine, side) for side in pair])[metric.reads] for line, pair in zip(after, sides, strict=True)]
        stats = metric.rows_from(*zip(*both, strict=True))
    elif labels and name in BY_LABEL:  # the likeliest label, as it was measured after training
        nats = np.array([[_nats(engine, answered(renderer, row, label).cut(max_length)) for label in labels] for row in rows])
        best = [labels[int(n)] for n in nats.argmin(axis=1)]
        stats = metric.rows(best, [line["reference"] for line in after])
    else:
        answers = engine.generate(
            [renderer.prompt(row).ids for row in rows],
            Sampling(max_new_tokens=max_new_tokens),
            on_progress=lambda done, total: progress.show("export: held-out rows", done, total),
        )
        spoken = [engine.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
        texts = [without_thought(text, line["reference"]) for text, line in zip(spoken, after, strict=True)]
        stats = metric.rows(texts, [line["reference"] for line in after])
    value = float(metric.value(stats.sum(axis=0)))
    kept = value >= bounds["low"] if metric.higher_is_better else value <= bounds["high"]
    return {"metric": name, "value": bounds["value"], "low": bounds["low"], "high": bounds["high"], "export_value": value, "kept": kept}


def _measured(renderer: Renderer, row: Row, max_length: int) -> list[Any]:
    """The sequences whose likelihood is a row's: of a pair, the preferred answer's alone."""
    if row.kind == "preference":
        return [_sides(renderer, row, max_length)[0]]
    return [s.cut(max_length) for s in renderer.sequences(row)]


def _sides(renderer: Renderer, row: Row, max_length: int) -> tuple[Any, Any]:
    """Both answers of a pair, each after its prompt."""
    return part(cut(renderer.sequences(row)[0], max_length))


def _nats(engine: Engine, sequence: Any) -> float:
    """The weighted negative log-likelihood of one sequence, from the engine's own logits."""
    from scipy.special import logsumexp

    learned = np.flatnonzero(sequence.weights)
    logits = engine.logits(sequence.tokens.tolist())[learned - 1].astype(np.float64)
    chosen = logits[np.arange(len(learned)), sequence.tokens[learned]]
    return float(((logsumexp(logits, axis=1) - chosen) * sequence.weights[learned]).sum())
