"""Which prompts are generated together."""

from __future__ import annotations

from dataclasses import dataclass

from tunery.errors import InputError

TOKENS = 16_384
"""Rows × (longest prompt + new tokens) of a batch. A key and value of 16k tokens is 0.4 GB in float32 for a 135M model (30 layers, 3 × 64
key/value values); beyond some dozen rows a CPU gains nothing more."""


@dataclass(frozen=True)
class Batch:
    """Places in the callers' list of prompts, and how many tokens each may be answered with."""

    rows: tuple[int, ...]
    new_tokens: int


def batches(prompts: list[list[int]], max_new_tokens: int, context: int, alone: frozenset[int] = frozenset()) -> list[Batch]:
    """Prompts of similar length together, longest first, so that a budget that is too large shows at once.

    Prompts whose answer the context cuts short share a batch only with those cut at the same length: no answer depends on its
    neighbours. `alone` are places that must not share. Raises InputError for a prompt that is empty or fills the context.
    """
    for n, prompt in enumerate(prompts):
        check_prompt(prompt, context, f"prompt {n + 1}: ")
    found: list[Batch] = []
    rows: list[int] = []
    width = allowed = 0
    for n in sorted(range(len(prompts)), key=lambda n: (-len(prompts[n]), n)):
        room = min(max_new_tokens, context - len(prompts[n]))
        full = (len(rows) + 1) * (width + allowed) > TOKENS
        if rows and (full or room != allowed or n in alone or rows[-1] in alone):
            found.append(Batch(tuple(rows), allowed))
            rows = []
        if not rows:
            width, allowed = len(prompts[n]), room
        rows.append(n)
    if rows:
        found.append(Batch(tuple(rows), allowed))
    return found


def check_prompt(prompt: list[int], context: int, who: str = "") -> None:
    """Raises InputError when nothing can be generated after this prompt."""
    check_tokens(prompt, context - 1, who)


def check_tokens(tokens: list[int], limit: int, who: str = "") -> None:
    """Raises InputError for no tokens and for more than `limit`."""
    if not tokens:
        raise InputError(f"{who}there is nothing to read; give the model at least one token")
    if len(tokens) > limit:
        raise InputError(f"{who}{len(tokens)} tokens are too many; the model's context takes {limit} here, shorten the text")


def until_stop(tokens: list[int], stop_ids: tuple[int, ...], new_tokens: int) -> list[int]:
    """The tokens before the first stop token, at most `new_tokens`."""
    end = next((n for n, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return tokens[: min(end, new_tokens)]
