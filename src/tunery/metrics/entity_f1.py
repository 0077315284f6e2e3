"""Tagging: entities that were found whole, and words that were tagged right.

A prediction is a row's tags, set apart by spaces. Entities are read by seqeval's `get_entities`, which reads as the official `conlleval`
does (Tjong Kim Sang and De Meulder 2003): I-X after another type begins an entity. One counts as found when its type, first and last word
are right. Precision, recall and F1 are micro-averaged over all types, as the CoNLL-2003 task is scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunery.errors import InputError
from tunery.metrics.base import Metric, TextMetric, check_lengths, ratio

if TYPE_CHECKING:
    import numpy as np

Entity = tuple[str, int, int]
"""Type, first word, last word."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities in one row's BIO tags."""
    from seqeval.metrics.sequence_labeling import get_entities

    return {(str(kind), int(first), int(last)) for kind, first, last in get_entities(list(tags))}


def types(rows: Sequence[str]) -> list[str]:
    """The types of the entities in these rows of tags, sorted."""
    return sorted({kind for row in rows for kind, _, _ in entities(row.split())})


class _Entities(TextMetric):
    """Statistics a row and type: (found rightly, found, expected). The types are those of the references, and last all others together."""

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        import numpy as np

        _check_tags(predictions, references)
        place = {kind: n for n, kind in enumerate(types(references))}
        stats = np.zeros((len(references), len(place) + 1, 3))
        for n, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            found, expected = entities(prediction.split()), entities(reference.split())
            for column, group in enumerate((found & expected, found, expected)):
                for kind, _, _ in group:
                    stats[n, place.get(kind, len(place)), column] += 1
        return stats.reshape(len(references), -1)

    def counts(self, total: np.ndarray) -> np.ndarray:
        """(..., 3): found rightly, found, expected, over all types."""
        import numpy as np

        total = np.asarray(total, dtype=np.float64)
        summed: np.ndarray = total.reshape(*total.shape[:-1], -1, 3).sum(axis=-2)
        return summed


class EntityF1(_Entities):
    """Twice the entities that were found rightly over those found and those expected."""

    name = "entity_f1"
    title = "Entity F1"

    def value(self, total: np.ndarray) -> np.ndarray:
        import numpy as np

        counts = self.counts(total)
        return ratio(np.stack([2 * counts[..., 0], counts[..., 1] + counts[..., 2]], axis=-1))


class EntityPrecision(_Entities):
    """The share of the found entities that are right."""

    name = "entity_precision"
    title = "Entity precision"

    def value(self, total: np.ndarray) -> np.ndarray:
        return ratio(self.counts(total)[..., :2])


class EntityRecall(_Entities):
    """The share of the expected entities that were found."""

    name = "entity_recall"
    title = "Entity recall"

    def value(self, total: np.ndarray) -> np.ndarray:
        return ratio(self.counts(total)[..., ::2])


class TagAccuracy(TextMetric):
    """The share of words with the right tag. Statistics a row: (right words, words)."""

    name = "tag_accuracy"
    title = "Tag accuracy"

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        import numpy as np

        _check_tags(predictions, references)
        pairs = [(p.split(), r.split()) for p, r in zip(predictions, references, strict=True)]
        return np.array([(sum(a == b for a, b in zip(p, r, strict=True)), len(r)) for p, r in pairs], dtype=np.float64)

    def value(self, total: np.ndarray) -> np.ndarray:
        return ratio(total)


def by_type(predictions: Sequence[str], references: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each type of entity that is expected or found: precision, recall, f1, and how many are expected, found, and found rightly."""
    counts: Counter[tuple[str, str]] = Counter()
    for prediction, reference in zip(predictions, references, strict=True):
        found, expected = entities(prediction.split()), entities(reference.split())
        for what, group in (("right", found & expected), ("found", found), ("expected", expected)):
            counts.update((kind, what) for kind, _, _ in group)
    table = {}
    for kind in sorted({kind for kind, _ in counts}):
        right, found_, expected_ = (counts[kind, what] for what in ("right", "found", "expected"))
        table[kind] = {
            "precision": right / found_ if found_ else 0.0,
            "recall": right / expected_ if expected_ else 0.0,
            "f1": 2 * right / (found_ + expected_),
            "expected": expected_,
            "found": found_,
            "right": right,
        }
    return table


def _check_tags(predictions: Sequence[str], references: Sequence[str]) -> None:
    """Raise InputError unless every prediction has as many tags as its reference."""
    check_lengths(predictions, references)
    for n, (prediction, reference) in enumerate(zip(predictions, references, strict=True), 1):
        if len(prediction.split()) != len(reference.split()):
            raise InputError(
                f"prediction {n} has {len(prediction.split())} tags and its reference {len(reference.split())}; give one tag a word"
            )


METRICS: tuple[type[Metric], ...] = (EntityF1, EntityPrecision, EntityRecall, TagAccuracy)
