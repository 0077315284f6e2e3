"""What training cost elsewhere: the likelihood of general text, in two domains, before and after.

The text is the same both times and holds nothing that the training rows hold (see `probe_text`). More bits per byte after than before
is forgetting; the bounds come from documents, not tokens, since tokens of one document go together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunery import metrics
from tunery.evaluate.likelihood import likelihoods
from tunery.evaluate.probe_text import DOMAINS, ProbeText, probe_documents, seen_filter
from tunery.metrics import LikelihoodMetric
from tunery.progress import Progress
from tunery.tasks import get

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _Document:
    tokens: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, ids: list[int]) -> _Document:
        return cls(np.asarray(ids, dtype=np.int32), np.ones(len(ids), np.float32))


def choose(tokenizer: Any, tokens: int, training_texts: Iterable[str]) -> ProbeText:
    """The text to measure: at least `tokens` tokens over all domains, none of it in the training rows."""
    return probe_documents(
        tuple(DOMAINS),
        amount=-(-tokens // len(DOMAINS)),
        exclude=seen_filter(training_texts),
        measure=lambda piece: len(tokenizer(piece, add_special_tokens=False).input_ids),
    )


def probe(
    model: PreTrainedModel, tokenizer: Any, text: ProbeText, context: int, progress: Progress, when: str
) -> dict[str, dict[str, Any]]:
    """For each domain the nats, predicted tokens and bytes of its documents, cut at the model's context; and the text's own hash."""
    measured = {}
    for domain, pieces in text.documents.items():
        documents = [_Document.of(tokenizer(piece, add_special_tokens=True).input_ids[:context]) for piece in pieces]
        nats, counts = likelihoods(model, get("text"), documents, progress, f"forgetting {when}: {domain}")
        sizes = [len(tokenizer.decode(d.tokens.tolist(), skip_special_tokens=True).encode()) for d in documents]
        about = {"sha256": text.sha256, "excluded": text.excluded[domain], "short": domain in text.short}
        measured[domain] = {"nll": nats.tolist(), "tokens": counts.tolist(), "bytes": sizes, **about}
    return measured


def compare(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The report's `forgetting`: bits per byte of each domain before and after, with bounds and a paired test."""
    metric = metrics.get("bits_per_byte")
    assert isinstance(metric, LikelihoodMetric)
    result = {}
    for domain, old in before.items():
        if not old["nll"]:  # the training rows held all of this domain's text
            continue
        a = metric.rows_from(old["nll"], old["tokens"], old["bytes"])
        b = metric.rows_from(after[domain]["nll"], after[domain]["tokens"], after[domain]["bytes"])
        result[domain] = {
            "tokens": int(sum(old["tokens"])),
            "sha256": old["sha256"],
            "excluded": old["excluded"],
            "before": metrics.interval(metric, a),
            "after": metrics.interval(metric, b),
            "difference": metrics.paired(metric, a, b),
        }
    return result
