"""What a row says, apart from its form: the basis for finding rows that are there twice."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any

from tunery.data import preference
from tunery.data.rows import Row

LABELLED = ("label", "tags")
"""Kinds of row whose answer is no text but a choice."""


def conversation(row: Row) -> list[dict[str, Any]]:
    """The row as messages: a chat as it is, `prompt`/`completion` as a user's and an assistant's message, `text` as an assistant's.

    Of a preference row the prompt, and then both answers. What a classifier reads is the user's, its labels are the assistant's.
    """
    if row.kind == "preference":
        return preference.conversation(row.value)
    if row.kind == "chat":
        return list(row.value["messages"])
    if row.kind == "completion":
        return [{"role": "user", "content": row.value["prompt"]}, {"role": "assistant", "content": row.value["completion"]}]
    if row.kind in LABELLED:
        words = row.value["text"] if row.kind == "label" else " ".join(row.value["tokens"])
        answer = row.value["label"] if row.kind == "label" else " ".join(row.value["tags"])
        return [{"role": "user", "content": words}, {"role": "assistant", "content": answer}]
    return [{"role": "assistant", "content": row.value["text"]}]


def content_hash(row: Row) -> int:
    """64 bits of SHA-256 over the row's messages: the same for rows that differ only in weights, tools or white space.

    Unicode is compared in its composed form (NFC), and runs of white space count as one space. Labels do not count: a text that is to be
    classified is the same text under any label.
    """
    messages = conversation(row)
    return _hash(messages[:-1] if row.kind in LABELLED else messages)


def group_hash(row: Row) -> int:
    """As `content_hash`, the same for rows that a split must not part: pairs about one prompt, of which there are often several."""
    return _hash(preference.prompt(row.value)) if row.kind == "preference" else content_hash(row)


def _hash(messages: list[dict[str, Any]]) -> int:
    said = [(m["role"], normalised(m["content"]), m.get("tool_calls")) for m in messages]
    digest = hashlib.sha256(json.dumps(said, ensure_ascii=False, sort_keys=True).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "little")


def question_and_answer(row: Row) -> tuple[str, str]:
    """(everything before the last answer but the system's messages, the last answer): what a reader would call the row."""
    messages = conversation(row)
    if row.kind == "preference":
        asked = preference.prompt(row.value)
        answers = "\n".join(m["content"] for m in messages[len(asked) :])
        return "\n".join(m["content"] for m in asked if m["role"] != "system"), answers
    question = "\n".join(m["content"] for m in messages[:-1] if m["role"] != "system")
    calls = messages[-1].get("tool_calls")
    return question, messages[-1]["content"] + (json.dumps(calls, ensure_ascii=False) if calls else "")


def normalised(text: str) -> str:
    """Composed Unicode, and one space for each run of white space."""
    return " ".join(unicodedata.normalize("NFC", text).split())
