"""chrF (Popović 2015) and BLEU (Papineni et al. 2002) of the whole test set, computed by sacrebleu.

Both are corpus-level: n-gram counts are summed over rows and scored once, so the row statistics are sacrebleu's own
sentence statistics. Settings are sacrebleu's defaults (chrF2 with 6 characters; BLEU 4-gram, `13a` tokenisation, `exp`
smoothing). sacrebleu reports 0 to 100; here, as everywhere in a report, shares are 0 to 1, so its score is divided by 100.

sacrebleu gives its statistics through two methods that begin with an underscore; its own bootstrap and its subclasses
use them, and the tests hold the result equal to `corpus_chrf` and `corpus_bleu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunery.metrics.base import Metric, TextMetric, check_lengths

if TYPE_CHECKING:
    import numpy as np


class _Corpus(TextMetric):
    @cached_property
    def _scorer(self) -> Any:
        raise NotImplementedError

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        import numpy as np

        check_lengths(predictions, references)
        return np.array(self._scorer._extract_corpus_statistics(list(predictions), [list(references)]), dtype=np.float64)

    def value(self, total: np.ndarray) -> np.ndarray:
        import numpy as np

        total = np.asarray(total)
        flat = total.reshape(-1, total.shape[-1])
        scores = [self._scorer._compute_score_from_stats([round(x) for x in row]).score / 100 for row in flat.tolist()]
        return np.array(scores).reshape(total.shape[:-1])


class ChrF(_Corpus):
    """The F-score (recall counts double) of character n-grams up to 6; serves every language and script."""

    name = "chrf"
    title = "chrF"

    @cached_property
    def _scorer(self) -> Any:
        from sacrebleu.metrics.chrf import CHRF

        return CHRF()


class Bleu(_Corpus):
    """Precision of word n-grams up to 4 with a penalty for brevity; 0 where no row has four words in common."""

    name = "bleu"
    title = "BLEU"

    @cached_property
    def _scorer(self) -> Any:
        from sacrebleu.metrics.bleu import BLEU

        return BLEU(force=True)  # the warning about tokenised input is for people at a terminal


METRICS: tuple[type[Metric], ...] = (ChrF, Bleu)
