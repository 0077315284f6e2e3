"""Turning one raw mapping into a row's kind and value, or saying in one sentence what is wrong with it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from tunery.data import labelled, other_forms, preference
from tunery.data.messages import RowProblem, chat, encodable

__all__ = ["NEEDED", "ROW_KEYS", "RowProblem", "validate"]

ROW_KEYS = frozenset({"messages", "tools", "functions", "prompt", "completion"}) | labelled.KEYS | other_forms.KEYS | preference.KEYS
"""The keys that make a row; any other key is ignored (a data set may carry ids, sources, dates)."""

_NEEDED = {"messages", "prompt", "completion", "text", "tokens", "tags"}
NEEDED = "it needs `messages`, `prompt` and `completion`, `tokens` and `tags`, or `text`"

_MEANT = {
    "conversations": "messages",
    "conversation": "messages",
    "dialog": "messages",
    "instruction": "prompt",
    "question": "prompt",
    "query": "prompt",
    "input": "prompt",
    "output": "completion",
    "response": "completion",
    "answer": "completion",
    "target": "completion",
    "content": "text",
    "document": "text",
    **labelled.MEANT,
}
"""What other tools call the same thing."""


def validate(raw: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(kind, value) of a row, as `Row` describes them. Raises RowProblem.

    `messages` comes before `prompt` and `completion`, these before `tokens` and `tags`, these before `text` and `label`, and `text` alone
    comes last; a null value counts as absent.
    Alpaca and ShareGPT rows come before `text`, which data sets of theirs often hold as well, rendered.
    """
    raw = other_forms.as_openai(raw)
    if preference.is_pair(raw):  # before `messages`, where many such data sets repeat the preferred side
        return "preference", preference.pair(raw)
    has = {key for key in ROW_KEYS if raw.get(key) is not None}
    if "messages" in has:
        return "chat", chat(raw["messages"], raw.get("tools"), raw.get("functions"))
    if {"prompt", "completion"} <= has:
        return _completion(raw)
    if {"tokens", "tags"} <= has:
        return "tags", labelled.tagged_words(raw)
    if {"text", "label"} <= has:
        return "label", labelled.labelled_text(raw)
    if "text" in has:
        text = _text(raw["text"], "text")
        if not text.strip():
            raise RowProblem("`text` is empty; write some text or remove the row")
        return "text", {"text": text}
    for pair in (("prompt", "completion"), ("tokens", "tags"), ("label", "text")):
        if not has.intersection(pair):
            continue
        here, missing = pair if pair[0] in has else pair[::-1]
        raise RowProblem(f"missing column `{missing}`: a row with `{here}` needs both{_hint(raw, {missing})}")
    null = [key for key in ("messages", "prompt", "completion", "text", "tokens", "tags", "label") if key in raw]
    if null:
        raise RowProblem(f"`{null[0]}` is null; give it a value or remove the row")
    names = ", ".join(f"`{str(k)[:40]}`" for k in list(raw)[:8]) or "no keys"
    raise RowProblem(f"missing column: the row has {names}; {NEEDED}{_hint(raw, _NEEDED)}")


def _completion(raw: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    prompt, completion = raw["prompt"], raw["completion"]
    if isinstance(prompt, list) or isinstance(completion, list):
        # TRL's conversational form: both are lists of messages.
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        completion = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        if not isinstance(prompt, list) or not isinstance(completion, list):
            raise RowProblem("`prompt` and `completion` are both text, or both lists of messages")
        # Only the completion is learned, also when the prompt holds earlier answers.
        prompt = [{**m, "weight": 0} if isinstance(m, Mapping) and m.get("role") == "assistant" else m for m in prompt]
        return "chat", chat(prompt + completion, raw.get("tools"), raw.get("functions"))
    value = {"prompt": _text(prompt, "prompt"), "completion": _text(completion, "completion")}
    for key in ("prompt", "completion"):
        if not value[key].strip():
            mend = "; for text without a prompt use `text` rows" if key == "prompt" else "; write the answer or remove the row"
            raise RowProblem(f"`{key}` is empty{mend}")
    return "completion", value


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise RowProblem(f"`{key}` must be text, not {type(value).__name__}; put it in quotes")
    return encodable(value, f"`{key}`")


def _hint(raw: Mapping[str, Any], wanted: set[str]) -> str:
    for name in raw:
        meant = _MEANT.get(str(name).lower()) or next(
            iter(difflib.get_close_matches(str(name).lower()[:80], sorted(wanted), n=1, cutoff=0.7)), None
        )
        if meant in wanted:
            return f"; rename `{str(name)[:40]}` to `{meant}`?"
    return ""
