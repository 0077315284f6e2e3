"""Metrics by name, one family a file, each with bounds. A new family is one new file with a tuple `METRICS`.

    metric = get("chrf")
    rows = metric.rows(predictions, references)      # statistics of each row, (N, K)
    interval(metric, rows)                            # {"value": 0.61, "low": 0.58, "high": 0.64}
    paired(metric, before_rows, after_rows)           # {"difference": 0.2, "low": ..., "high": ..., "p_value": 0.001}

Shares are 0 to 1, chrF and BLEU too.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
import statistics
from collections.abc import Sequence
from functools import cache

from tunery.errors import InputError
from tunery.metrics.base import Metric, TextMetric, normalise
from tunery.metrics.bootstrap import Difference, Interval, interval, paired
from tunery.metrics.labels import find_labels
from tunery.metrics.likelihood import LikelihoodMetric
from tunery.metrics.preference import PairMetric

__all__ = [
    "Difference", "Interval", "LikelihoodMetric", "Metric", "PairMetric", "TextMetric", "choose", "find_labels", "get", "interval", "names", "normalise",
    "paired",
]  # fmt: skip


@cache
def _known() -> dict[str, type[TextMetric] | type[LikelihoodMetric] | type[PairMetric]]:
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return {metric.name: metric for module in modules for metric in getattr(module, "METRICS", ())}


def names() -> tuple[str, ...]:
    """The names of all metrics, sorted."""
    return tuple(sorted(_known()))


def get(name: str, labels: Sequence[str] | None = None) -> TextMetric | LikelihoodMetric | PairMetric:
    """The metric of that name: a `TextMetric`, a `LikelihoodMetric` or a `PairMetric`. `labels` serves classification.

    Raises InputError with the nearest name for one that does not exist.
    """
    metric = _known().get(name)
    if metric is None:
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
        mend = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(names())}"
        raise InputError(f"there is no metric `{name}`; {mend}")
    return metric(labels)


LONG_ANSWER = 10
"""Words from which on an answer is hardly ever matched exactly, so that overlap is what to look at first."""


def choose(references: Sequence[str]) -> tuple[str, ...]:
    """The text metrics that suit these expected answers; the first is the one to look at. Likelihood comes on top.

    Few answers: accuracy and macro-F1. Short ones: exact match first. Long ones (more than 10 words in the middle of the
    lengths): overlap of characters first. ROUGE-L only where most answers have the Latin letters that it can see.
    """
    if find_labels(references) is not None:
        return ("accuracy", "macro_f1", "exact_match")
    latin = sum(1 for r in references if re.search(r"[a-z0-9]", r.lower()))
    rouge = ("rouge_l",) if 2 * latin >= len(references) else ()
    if references and statistics.median(len(r.split()) for r in references) > LONG_ANSWER:
        return ("chrf", *rouge, "token_f1", "exact_match")
    return ("exact_match", "token_f1", "chrf", *rouge)
