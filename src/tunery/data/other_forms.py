"""Rows in the two forms that other tools write, Alpaca and ShareGPT, turned into OpenAI's form.

Alpaca, as LLaMA-Factory's `data/README.md` defines it:

    {"instruction": str, "input": str, "output": str, "system": str, "history": [[question, answer], ...], "tools": ...}

The user says `instruction` and `input`, joined by a line break. Answers of the history are learned too.

ShareGPT, as the same document and Axolotl's `chat_template` read it:

    {"conversations": [{"from": "human", "value": str}, {"from": "gpt", "value": str}, ...], "system": str, "tools": ...}

Other speakers: `system`; `function_call`, whose value is a JSON object {"name", "arguments"} or a list of them; `observation`, the
tool's answer. `chosen` and `rejected` in place of the last answer make a preference row of either form.
What is checked about messages, tools and weights in general is checked once, in `messages.py`, after the row was turned.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from tunery.data.json_rows import form, parse
from tunery.data.messages import RowProblem

__all__ = ["JSON_KEYS", "KEYS", "as_openai"]

KEYS = frozenset(
    {
        *("instruction", "input", "output", "system", "history", "conversations", "tools", "chosen", "rejected"),
        *("kto_tag", "images", "videos", "audios"),
    }
)
"""The columns that these forms may use; a reader of tables must not leave them out."""

JSON_KEYS = ("conversations", "history")
"""Those that hold JSON in a CSV file. `tools` is JSON text in every form."""

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "function_call",
    "observation": "tool",
    "tool": "tool",
}

_MEDIA = ("images", "videos", "audios")


def as_openai(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row in OpenAI's form: `messages` (and `tools`), or `input`, `preferred_completion` and `non_preferred_completion`.

    A row that is of neither form comes back unchanged. Raises RowProblem when it is of one of them and is wrong or ambiguous.
    """
    if raw.get("messages") is not None or (raw.get("prompt") is not None and raw.get("completion") is not None):
        return raw
    sharegpt = raw.get("conversations") is not None
    alpaca = raw.get("instruction") is not None and any(key in raw for key in ("output", "chosen", "rejected"))
    if sharegpt and alpaca:
        raise RowProblem("the row is both a ShareGPT row (`conversations`) and an Alpaca row (`instruction`); keep one of the two")
    if not sharegpt and not alpaca:
        return raw
    for key in _MEDIA:
        if _has(raw, key):
            raise RowProblem(
                f"`{key}`: a language model learns text only; remove the row, or the column if the text needs no picture or sound"
            )
    if raw.get("kto_tag") not in (None, ""):
        raise RowProblem("`kto_tag` marks one answer as good or bad; write pairs, with `chosen` and `rejected`, or remove the column")
    messages = _conversation(raw) if sharegpt else _alpaca(raw)
    tools = _tools(raw.get("tools"))
    extra: dict[str, Any] = {"tools": tools} if tools else {}
    if _has(raw, "chosen") or _has(raw, "rejected"):
        return _pair(raw, messages, extra)
    if alpaca:
        messages.append({"role": "assistant", "content": _text(raw.get("output"), "output", needed=True)})
    return {"messages": messages, **extra}


def _has(raw: Mapping[str, Any], key: str) -> bool:
    """Whether the row gives a value; an empty cell of a table and an empty list are none."""
    return raw.get(key) not in (None, "", [])


def _alpaca(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    if _has(raw, "prompt"):
        raise RowProblem("the row has both `instruction` and `prompt`, so what is asked is not clear; keep one of the two")
    messages: list[dict[str, Any]] = []
    if system := _text(raw.get("system"), "system"):
        messages.append({"role": "system", "content": system})
    history = raw.get("history")
    if not isinstance(history, list | None) and history != "":
        raise RowProblem(f"`history` must be a list of [question, answer] pairs, this is {form(history)}")
    for number, turn in enumerate(history or (), 1):
        if not isinstance(turn, list | tuple) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise RowProblem(f"`history`: turn {number} is not a pair of texts [question, answer]; mend it")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    asked = [text for key in ("instruction", "input") if (text := _text(raw.get(key), key))]
    if not asked:
        raise RowProblem("`instruction` and `input` are empty, so nothing is asked; write the instruction or remove the row")
    return [*messages, {"role": "user", "content": "\n".join(asked)}]


def _conversation(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    turns = raw["conversations"]
    if not isinstance(turns, list) or not turns:
        what = "empty" if turns == [] else form(turns)
        raise RowProblem(
            f'`conversations` must be a list of {{"from": ..., "value": ...}}, this is {what}; write the turns or remove the row'
        )
    messages = [_turn(turn, f"turn {number}") for number, turn in enumerate(turns, 1)]
    system = _text(raw.get("system"), "system")
    if system:
        if messages[0]["role"] == "system" and messages[0]["content"] != system:
            raise RowProblem("the row has two system prompts, `system` and the first turn, and they differ; keep one of them")
        if messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
    return messages


def _turn(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise RowProblem(f'{where} is {form(turn)}, not an object; write {{"from": "human", "value": "..."}}')
    if turn.get("from") is None and turn.get("role") is not None:
        return dict(turn)  # OpenAI's messages under ShareGPT's name, as many data sets have them
    if not isinstance(turn.get("from"), str) or "value" not in turn:
        has = ", ".join(f"`{str(k)[:30]}`" for k in list(turn)[:6]) or "no keys"
        raise RowProblem(f'{where} has {has}; a turn is {{"from": "human", "value": "..."}}')
    speaker, value = turn["from"], turn["value"]
    role = _SPEAKERS.get(speaker)
    if role is None:
        near = difflib.get_close_matches(speaker[:40].lower(), list(_SPEAKERS), n=1, cutoff=0.5)
        known = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(_SPEAKERS)}"
        raise RowProblem(f"{where} is from the unknown speaker {speaker[:40]!r}; {known}")
    if not isinstance(value, str):
        raise RowProblem(f"{where}: `value` must be text, this is {form(value)}; put it in quotes")
    message: dict[str, Any]
    if role == "function_call":
        message = {"role": "assistant", "content": None, "tool_calls": _calls(value, where)}
    else:
        message = {"role": role, "content": value}
    if turn.get("weight") is not None:
        message["weight"] = turn["weight"]
    return message


def _calls(text: str, where: str) -> list[dict[str, Any]]:
    """OpenAI's tool calls of the JSON text in a `function_call` turn."""
    try:
        calls = parse(text)
    except ValueError as e:
        raise RowProblem(f'{where}: the function call is not valid JSON ({e}); write {{"name": ..., "arguments": {{...}}}}') from None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(c, Mapping) and isinstance(c.get("name"), str) for c in calls):
        raise RowProblem(f'{where}: a function call is {{"name": ..., "arguments": {{...}}}}, or a list of these; mend it')
    return [{"type": "function", "function": {"name": c["name"], "arguments": c.get("arguments")}} for c in calls]


def _tools(tools: Any) -> list[Any] | None:
    """OpenAI's tools: these forms hold them as JSON text, and each function without the wrapping."""
    if isinstance(tools, str):
        if not tools.strip():
            return None
        try:
            tools = parse(tools)
        except ValueError as e:
            raise RowProblem(f"`tools` is not valid JSON ({e}); write a list of functions") from None
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise RowProblem(f"`tools` must be a list of functions, this is {form(tools)}; put it in brackets")
    return [
        {"type": "function", "function": t} if isinstance(t, Mapping) and "function" not in t and isinstance(t.get("name"), str) else t
        for t in tools
    ]


def _pair(raw: Mapping[str, Any], messages: list[dict[str, Any]], extra: dict[str, Any]) -> dict[str, Any]:
    if _has(raw, "output"):
        raise RowProblem(
            "the row has `output` and a pair, `chosen` and `rejected`; keep the pair to learn a preference, or `output` to learn it"
        )
    sides = {}
    for key, name in (("chosen", "preferred_completion"), ("rejected", "non_preferred_completion")):
        if not _has(raw, key):
            raise RowProblem(f"`{key}` is missing: a preference row needs `chosen` and `rejected`")
        value = raw[key]
        if isinstance(value, Mapping):
            side = _turn(value, f"`{key}`")
            if side.get("role") != "assistant":
                raise RowProblem(f"`{key}` must be an answer, from `gpt` or `function_call`, not from the {side.get('role')}")
        else:
            side = {"role": "assistant", "content": _text(value, key, needed=True)}
        sides[name] = [side]
    return {"input": {"messages": messages, **extra}, **sides}


def _text(value: Any, key: str, needed: bool = False) -> str:
    """The text of a column, empty when there is none."""
    if isinstance(value, str) and (value.strip() or not needed):
        return value if value.strip() else ""
    if needed:
        what = "is empty" if value is None or isinstance(value, str) else f"must be text, this is {form(value)}"
        raise RowProblem(f"`{key}` {what}; write the answer or remove the row")
    if value is None:
        return ""
    raise RowProblem(f"`{key}` must be text, this is {form(value)}; put it in quotes")
