"""Does an exported model still do the task? Its primary metric on the test rows, against the trained model's bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunery import metrics
from tunery.evaluate.compare import BY_LABEL, labels_of
from tunery.evaluate.predictions import answered
from tunery.infer.sampling import Sampling
from tunery.metrics import LikelihoodMetric
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
) -> dict[str, Any]:
    """The metric `name` of the exported model on the rows that `after` was measured on, and whether it stays within the `bounds`.

    Better than the bounds is within them.
    """
    labels = labels_of(after)
    metric = metrics.get(name, labels)
    if isinstance(metric, LikelihoodMetric):
        own = [sum(_nats(engine, s.cut(max_length)) for s in renderer.sequences(row)) for row in rows]
        stats = metric.rows_from(own, [line["tokens"] for line in after], [line["bytes"] for line in after])
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
        texts = [engine.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
        stats = metric.rows(texts, [line["reference"] for line in after])
    value = float(metric.value(stats.sum(axis=0)))
    kept = value >= bounds["low"] if metric.higher_is_better else value <= bounds["high"]
    return {"metric": name, "value": bounds["value"], "low": bounds["low"], "high": bounds["high"], "export_value": value, "kept": kept}


def _nats(engine: Engine, sequence: Any) -> float:
    """The weighted negative log-likelihood of one sequence, from the engine's own logits."""
    from scipy.special import logsumexp

    learned = np.flatnonzero(sequence.weights)
    logits = engine.logits(sequence.tokens.tolist())[learned - 1].astype(np.float64)
    chosen = logits[np.arange(len(learned)), sequence.tokens[learned]]
    return float(((logsumexp(logits, axis=1) - chosen) * sequence.weights[learned]).sum())
