"""What a row says, apart from its form: the basis for finding rows that are there twice."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any

from tunery.data.rows import Row


def conversation(row: Row) -> list[dict[str, Any]]:
    """The row as messages: a chat as it is, `prompt`/`completion` as a user's and an assistant's message, `text` as an assistant's."""
    if row.kind == "chat":
        return list(row.value["messages"])
    if row.kind == "completion":
        return [{"role": "user", "content": row.value["prompt"]}, {"role": "assistant", "content": row.value["completion"]}]
    return [{"role": "assistant", "content": row.value["text"]}]


def content_hash(row: Row) -> int:
    """64 bits of SHA-256 over the row's messages: the same for rows that differ only in weights, tools or white space.

    Unicode is compared in its composed form (NFC), and runs of white space count as one space.
    """
    said = [(m["role"], normalised(m["content"]), m.get("tool_calls")) for m in conversation(row)]
    digest = hashlib.sha256(json.dumps(said, ensure_ascii=False, sort_keys=True).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "little")


def question_and_answer(row: Row) -> tuple[str, str]:
    """(everything before the last answer but the system's messages, the last answer): what a reader would call the row."""
    messages = conversation(row)
    question = "\n".join(m["content"] for m in messages[:-1] if m["role"] != "system")
    calls = messages[-1].get("tool_calls")
    return question, messages[-1]["content"] + (json.dumps(calls, ensure_ascii=False) if calls else "")


def normalised(text: str) -> str:
    """Composed Unicode, and one space for each run of white space."""
    return " ".join(unicodedata.normalize("NFC", text).split())
