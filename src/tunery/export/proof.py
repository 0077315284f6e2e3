"""The proof that an export is the model that was trained.

`greedy_match` is the share of equal argmaxes over 32 tokens of 50 prompts, teacher-forced along the float32 torch model's own greedy
continuation: both models read the same text, so one different token does not make all later ones differ. The continuation is always
exactly 32 tokens long; a stop token in it is text like any other. `max_logit_difference` is over the same positions and all tokens.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import InputError, ProofError
from tunery.infer.sampling import Sampling
from tunery.infer.torch_engine import TorchEngine
from tunery.progress import Progress, Quiet

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from tunery.infer.engine import Engine

TOKENS = 32
SAME_MODEL = 0.999
"""The least `greedy_match` of a float32 export: of 1600 positions one may differ, where two tokens are equally likely to within rounding."""


@dataclass(frozen=True)
class Figures:
    """How far an export is from the trained model."""

    greedy_match: float
    max_logit_difference: float

    def require_same(self, who: str) -> None:
        """Raises ProofError when this is not the same model computed in float32."""
        if self.greedy_match < SAME_MODEL:
            raise ProofError(
                f"{who}: not the model that was trained: greedy_match {self.greedy_match:.4f} is below {SAME_MODEL}, "
                f"max_logit_difference {self.max_logit_difference:.4g}; the export was not kept"
            )


class Reference:
    """The trained model's greedy continuation of each prompt, and its logits there: (prompts, 32, vocabulary) float32 in a temporary file.

    50 prompts of a vocabulary of 49k are 0.3 GB, which is why they are not held in memory; the file goes away with the object.
    """

    def __init__(self, prompts: list[list[int]], continuations: list[list[int]], logits: np.ndarray) -> None:
        self.prompts, self.continuations, self._logits = prompts, continuations, logits

    @classmethod
    def of(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]], progress: Progress | None = None
    ) -> Reference:
        """Compute it with a float32 model. Raises InputError for a prompt that leaves less than 32 tokens of context."""
        import numpy as np

        progress = progress or Quiet()
        engine = TorchEngine(model, tokenizer, stop_ids=())
        for prompt in prompts:
            if not 0 < len(prompt) <= engine.context - TOKENS:
                raise InputError(
                    f"a proof prompt has {len(prompt)} tokens; it must leave {TOKENS} of the model's context of {engine.context}"
                )
        what = "export: the model's own answers"
        continuations = engine.generate(prompts, Sampling(max_new_tokens=TOKENS), lambda done, total: progress.show(what, done, 2 * total))
        logits: Any = None
        for n, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
            own = engine.logits(prompt + continuation[:-1])[-TOKENS:]
            if logits is None:
                with tempfile.TemporaryFile() as file:
                    logits = np.memmap(file, dtype=np.float32, mode="w+", shape=(len(prompts), TOKENS, own.shape[1]))
            logits[n] = own
            progress.show(what, len(prompts) + n + 1, 2 * len(prompts))
        return cls(prompts, continuations, logits)

    def compare(self, engine: Engine, who: str, progress: Progress | None = None) -> Figures:
        """How far `engine` is from the reference. Raises ProofError when its logits are not finite or have another vocabulary."""
        import numpy as np

        progress = progress or Quiet()
        equal, difference = 0, 0.0
        for n, (prompt, continuation, expected) in enumerate(zip(self.prompts, self.continuations, self._logits, strict=True)):
            found = engine.logits(prompt + continuation[:-1])[-TOKENS:]
            if found.shape != expected.shape:
                raise ProofError(
                    f"{who}: gives {found.shape[1]} logits a token where the trained model gives {expected.shape[1]}; the export was not kept"
                )
            if not np.isfinite(found).all():
                raise ProofError(f"{who}: gives logits that are not numbers; the export was not kept")
            equal += int((found.argmax(-1) == expected.argmax(-1)).sum())
            difference = max(difference, float(np.abs(found - expected).max()))
            progress.show(f"{who}: proof", n + 1, len(self.prompts))
        return Figures(equal / (TOKENS * len(self.prompts)), difference)


def prove_held_out(measured: dict[str, Any], who: str) -> None:
    """Raises ProofError when a quantised export lost the metric that was measured on the test rows."""
    if not measured["kept"]:
        raise ProofError(
            f"{who}: {measured['metric']} on the test rows is {measured['export_value']:.4f}, outside the trained model's bounds "
            f"{measured['low']:.4f} to {measured['high']:.4f} (its value is {measured['value']:.4f}); the export was not kept, choose a higher precision"
        )


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
