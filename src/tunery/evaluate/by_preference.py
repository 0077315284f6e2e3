"""Which of two answers the model prefers: evaluation of pairs, by the log-probabilities of both answers."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import TYPE_CHECKING, Any, cast

from tunery.data import pairs
from tunery.data.preference import conversation
from tunery.data.render import Sequence
from tunery.data.rows import Row
from tunery.evaluate import predictions
from tunery.evaluate.likelihood import likelihoods
from tunery.progress import Progress
from tunery.run import Run
from tunery.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunery.data.pairs import PairRenderer
    from tunery.tasks.preference import Variant

Line = dict[str, Any]


def predict(
    model: PreTrainedModel,
    renderer: PairRenderer,
    task: Variant,
    rows: Many[Row],
    max_length: int,
    context: int,
    max_new_tokens: int | None,
    progress: Progress,
    when: str,
) -> list[Line]:
    """See `predictions.predict`. nll, tokens and bytes are the preferred answer's.

    prompt, chosen, rejected: texts. log_prob, length, mean_log_prob: [preferred, other], the summed log-probability of each answer's
    tokens, their number, and the one over the other. reward: [preferred, other], the implicit rewards, where they are known: a loss
    with a reference model needs its log-probabilities; see `refer`.
    An answer longer than `max_length` is cut as it would be in training.
    """
    sides: list[Sequence] = []
    for row in rows:
        (found,) = renderer.sequences(row)
        sides += pairs.part(pairs.cut(found, max_length))
    nats, weights = likelihoods(model, cast(Task, task), sides, progress, f"evaluate {when}: both answers")
    lines = [_line(renderer, n, row, sides[2 * n], nats[2 * n :], weights[2 * n :]) for n, row in enumerate(rows)]
    for line in lines:
        line["beta"] = task.options.beta
        if not task.options.needs_reference:
            line.update(scores(line, line["log_prob"]))
    return lines


def of_run(run: Run, lines: Many[Line]) -> list[Line]:
    """The lines of a run's test rows with their rewards, counted from the model that its training began with.

    That is the base, whose lines are those `before` training, unless the run has lines of another: see `pipeline`.
    """
    reference = run.predictions_file("reference")
    return refer(predictions.read(reference if reference.is_file() else run.predictions_file("before")), lines)


def refer(reference: Many[Line], lines: Many[Line]) -> list[Line]:
    """The lines with the implicit rewards of their answers. reference: the lines of the reference model, about the same rows."""
    found = []
    for old, line in zip(reference, lines, strict=True):
        known = line if "reward" in line else {**line, "reference_log_prob": old["log_prob"]}
        found.append({**known, **scores(known, known["log_prob"])})
    return found


def scores(line: Line, log_prob: Many[float]) -> Line:
    """`mean_log_prob` and `reward` of the line's answers when their summed log-probabilities are these.

    The reward is β times the log-ratio to the reference where the line has one (dpo, kto), else β times the mean (orpo, simpo).
    """
    means = [total / length if length else 0.0 for total, length in zip(log_prob, line["length"], strict=True)]
    reference = line.get("reference_log_prob")
    gained = means if reference is None else [total - old for total, old in zip(log_prob, reference, strict=True)]
    return {"mean_log_prob": means, "reward": [line["beta"] * g for g in gained]}


def _line(renderer: PairRenderer, n: int, row: Row, chosen: Sequence, nats: Any, weights: Any) -> Line:
    said = conversation(row.value)
    asked = [m["content"] for m in (row.value.get("messages") or said[:1]) if m["role"] == "user"]
    decode = renderer.tokenizer.decode
    sums, lengths = [-float(nats[0]), -float(nats[1])], [float(weights[0]), float(weights[1])]
    answers = [_text(row.value[side]) for side in ("chosen", "rejected")]
    return {
        "row": n,
        "source": row.source,
        "line": row.line,
        "prompt": asked[-1] if asked else "",
        "chosen": answers[0],
        "rejected": answers[1],
        "nll": -sums[0],
        "tokens": lengths[0],
        "bytes": len(decode(chosen.tokens[chosen.weights > 0].tolist(), skip_special_tokens=True).encode()),
        "log_prob": sums,
        "length": lengths,
        "mean_log_prob": [total / length if length else 0.0 for total, length in zip(sums, lengths, strict=True)],
    }


def _text(side: Any) -> str:
    return side if isinstance(side, str) else "\n".join(m["content"] for m in side)
