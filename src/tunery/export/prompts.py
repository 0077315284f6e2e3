"""The fifty prompts of a proof."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tunery.data.rows import Row
from tunery.export.proof import TOKENS

if TYPE_CHECKING:
    from tunery.data.render import Renderer

COUNT = 50
LONGEST = 512
"""Tokens of a prompt: its last ones are kept. What matters is many different continuations, not long prompts."""

_ASKS = (
    "Explain {} to a child.",
    "Write two sentences about {}.",
    "Name three facts about {}.",
    "What is the most common mistake that people make with {}?",
    "Answer in one word: is {} more often found indoors or outdoors?",
)
_SUBJECTS = (
    "a bicycle",
    "rain",
    "the number seven",
    "an apple tree",
    "a library",
    "the Moon",
    "bread",
    "a violin",
    "traffic lights",
    "a river delta",
)


def proof_prompts(renderer: Renderer, context: int, own: Iterable[list[int]] = ()) -> list[list[int]]:
    """Token ids of 50 different prompts: the first of `own` (the test rows' prompts), filled up with general questions.

    General questions alone serve a model that was trained on nothing. `context` is the model's; each prompt leaves room for the proof.
    """
    longest = min(LONGEST, context - TOKENS)
    found: dict[tuple[int, ...], None] = {}
    for ids in own:
        if ids:
            found.setdefault(tuple(ids[-longest:]))
        if len(found) == COUNT:
            break
    for question in questions():
        if len(found) == COUNT:
            break
        found.setdefault(tuple(prompt_ids(renderer, question)[-longest:]))
    return [list(ids) for ids in found]


def questions() -> Iterator[str]:
    """50 different questions."""
    for subject in _SUBJECTS:
        for ask in _ASKS:
            yield ask.format(subject)


def prompt_ids(renderer: Renderer, text: str) -> list[int]:
    """The text as a user's turn, or as it stands for a model without a chat template."""
    if renderer.tokenizer.chat_template:
        return renderer.prompt_of([{"role": "user", "content": text}])
    return renderer.prompt(Row("completion", {"prompt": text, "completion": ""}, "proof", 0)).ids
