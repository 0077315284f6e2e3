"""The proof that an export of a model with a head is the model that was trained: the scores of the classes for the same texts.

`greedy_match` is the share of equal argmaxes, over texts, or over every token of them where each has a class; `max_logit_difference` is
over the same scores. Texts of different length share batches, so an export that pads or masks wrongly shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tunery.errors import ProofError
from tunery.export.probes import TEXTS
from tunery.export.prompts import COUNT, LONGEST, questions
from tunery.export.proof import Figures
from tunery.infer.head_engine import HeadEngine
from tunery.progress import Progress, Quiet

if TYPE_CHECKING:
    import numpy as np

    from tunery.data.render import Sequence


class HeadReference:
    """The trained model's own scores of each sequence, as `HeadEngine.logits` gives them."""

    def __init__(self, sequences: list[Sequence], logits: list[np.ndarray]) -> None:
        self.sequences, self._logits = sequences, logits

    @classmethod
    def of(cls, engine: HeadEngine, sequences: list[Sequence]) -> HeadReference:
        """Compute it with a float32 model."""
        return cls(sequences, engine.logits(sequences))

    def compare(self, engine: HeadEngine, who: str, progress: Progress | None = None) -> Figures:
        """How far `engine` is from the reference. Raises ProofError when its scores are not finite or of other classes."""
        import numpy as np

        progress = progress or Quiet()
        progress.show(f"{who}: proof", 0, len(self.sequences))
        equal, places, difference = 0, 0, 0.0
        for found, expected in zip(engine.logits(self.sequences), self._logits, strict=True):
            if found.shape != expected.shape:
                raise ProofError(
                    f"{who}: gives scores of shape {found.shape} where the trained model gives {expected.shape}; the export was not kept"
                )
            if not np.isfinite(found).all():
                raise ProofError(f"{who}: gives scores that are not numbers; the export was not kept")
            equal += int((found.argmax(-1) == expected.argmax(-1)).sum())
            places += expected[..., 0].size
            difference = max(difference, float(np.abs(found - expected).max()))
        progress.show(f"{who}: proof", len(self.sequences), len(self.sequences))
        return Figures(equal / places, difference)


def proof_sequences(renderer: Any, context: int, own: Iterable[Sequence] = ()) -> list[Sequence]:
    """50 different texts: the first of `own` (the test rows, already cut), filled up with the probes and general questions."""
    import numpy as np

    from tunery.data.render import Sequence

    found: dict[bytes, Sequence] = {}
    encodings = renderer.encode([*TEXTS, *questions()])
    general = (np.array(e.ids, dtype=np.int32) for e in encodings)
    nothing = (Sequence(ids, np.zeros(len(ids), np.float32), np.full(len(ids), -1, np.int32)) for ids in general)
    for sequence in (*own, *nothing):
        short = sequence.cut(min(LONGEST, context), renderer.tail)
        found.setdefault(short.tokens.tobytes(), short)
        if len(found) == COUNT:
            break
    return list(found.values())


def make_head_probes(renderer: Any) -> list[dict[str, Any]]:
    """`{"text", "ids"}` of each probe text, to be reproduced by every export's tokenizer: see `probes.verify_probes`."""
    return [{"text": text, "ids": list(e.ids)} for text, e in zip(TEXTS, renderer.encode(list(TEXTS)), strict=True)]
