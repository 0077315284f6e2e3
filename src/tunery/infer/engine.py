"""What every engine offers, so that evaluation, proofs and chat know no runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from tunery.infer.sampling import Sampling

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerFast

OnProgress = Callable[[int, int], None]
"""Called with (prompts done, prompts in all)."""


class Engine(Protocol):
    """A model that can be asked.

    `name` says which runtime it is; `stop_ids` end an answer; `context` is the most tokens of prompt and answer together.
    Every method raises InputError for an empty prompt and for one that leaves no room in the context.
    """

    name: str
    tokenizer: PreTrainedTokenizerFast
    stop_ids: tuple[int, ...]
    context: int

    def generate(self, prompts: list[list[int]], sampling: Sampling, on_progress: OnProgress | None = None) -> list[list[int]]:
        """The answer to each prompt, in the prompts' order, without the stop token. An answer also ends where the context does."""

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        """The answer's tokens as they come, without the stop token."""

    def logits(self, tokens: list[int]) -> np.ndarray:
        """(T, V) float32: after each of the T given tokens, the logits of the next; every token is given, none generated."""
