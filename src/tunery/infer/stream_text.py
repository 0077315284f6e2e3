"""Tokens to text while they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

HELD_BACK = 8
"""Tokens after which an undecodable end is no longer waited for: a character is at most four bytes, a token at least one."""


def stream_text(ids: Iterable[int], tokenizer: Any) -> Iterator[str]:
    """Pieces of text that together are the decoded answer; only whole characters are given out.

    A character may be spread over several tokens, and its first ones decode to U+FFFD; such an end is held back until it is whole.
    Text is decoded from a few tokens before the new ones, since some tokenizers write a token differently at the beginning of a text.
    """
    seen: list[int] = []
    start = done = 0  # seen[start:done] is given out already, and only serves as the beginning of what follows
    for token in ids:
        seen.append(token)
        before, text = _decode(tokenizer, seen[start:done]), _decode(tokenizer, seen[start:])
        if text.endswith("\ufffd") and len(seen) - done < HELD_BACK:
            continue
        if len(text) > len(before):
            yield text[len(before) :]
            start, done = done, len(seen)
    if done < len(seen):
        before, text = _decode(tokenizer, seen[start:done]), _decode(tokenizer, seen[start:])
        if len(text) > len(before):
            yield text[len(before) :]


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
