"""One conversation of OpenAI's chat form, checked and put into the form that chat templates take.

Follows OpenAI's fine-tuning format: roles, a `weight` on assistant messages, `tools`, tool calls, and the older
`functions` and `function_call`, which become tools. Differences that a template needs: the arguments of a tool call are
a mapping (OpenAI writes them as JSON text), content parts are joined, the role `developer` is `system`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from tunery.data.json_rows import form, parse

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool", "function": "tool"}

_KEPT = ("name", "reasoning_content", "reasoning", "thinking")
"""Keys of a message, besides role, content and tool calls, that some templates render."""

_DEEPEST = 50
"""Levels of lists and objects in a tool's schema; templates walk them recursively."""


class RowProblem(ValueError):
    """What is wrong with a row, without its place."""


def chat(messages: Any, tools: Any = None, functions: Any = None) -> dict[str, Any]:
    """{"messages", "weights", "tools" if any} of a conversation. Raises RowProblem."""
    if not isinstance(messages, list) or not messages:
        what = "empty" if messages == [] else form(messages)
        raise RowProblem(
            f'`messages` must be a list of messages, this is {what}; write [{{"role": "user", ...}}, {{"role": "assistant", ...}}]'
        )
    clean: list[dict[str, Any]] = []
    weights: list[float] = []
    for number, raw in enumerate(messages, 1):
        message, weight = _message(raw, number)
        _check_place(message, clean, number)
        clean.append(message)
        weights.append(weight)
    if clean[-1]["role"] != "assistant":
        raise RowProblem(
            f"the last message must be the assistant's answer, this is the {clean[-1]['role']}'s; add the answer or remove the message"
        )
    before = [m["role"] for m in clean[: [m["role"] for m in clean].index("assistant")]]
    if not before and weights[0]:
        raise RowProblem(
            'the first message is the assistant\'s, so there is nothing that it answers; begin with a user message, or give it "weight": 0'
        )
    if not any(weights):
        raise RowProblem("no supervised token: every assistant message has weight 0; give one of them weight 1 or remove the row")
    found = {"messages": clean, "weights": weights}
    known = _tools(tools, functions)
    if known:
        found["tools"] = known
    return found


def _message(raw: Any, number: int) -> tuple[dict[str, Any], float]:
    where = f"message {number}"
    if not isinstance(raw, Mapping):
        raise RowProblem(f'{where} is {form(raw)}, not an object; write {{"role": ..., "content": ...}}')
    if raw.get("role") is None:
        has = ", ".join(f"`{str(k)[:30]}`" for k in list(raw)[:6]) or "no keys"
        raise RowProblem(f'{where} has no `role` (it has {has}); a message is {{"role": "user", "content": "..."}}')
    role = ROLES.get(raw["role"]) if isinstance(raw["role"], str) else None
    if role is None:
        near = difflib.get_close_matches(str(raw["role"])[:40].lower(), list(ROLES), n=1, cutoff=0.5)
        meant = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant"}.get(
            str(raw["role"])[:40].lower()
        )
        nearest = meant or (near[0] if near else None)
        raise RowProblem(
            f"{where} has the unknown role {str(raw['role'])[:40]!r}; "
            + (f"did you mean `{nearest}`?" if nearest else f"roles are {', '.join(ROLES)}")
        )
    message: dict[str, Any] = {"role": role, "content": _content(raw.get("content"), where)}
    calls = _tool_calls(raw, where)
    if role == "assistant":
        if calls:
            message["tool_calls"] = calls
        elif not (message["content"] or "").strip():
            raise RowProblem(f"{where}: the assistant's text is empty, so there is nothing to learn; write the answer or remove the row")
    elif calls:
        raise RowProblem(f"{where}: only the assistant calls tools, not the {role}; remove `tool_calls`")
    elif message["content"] is None:
        raise RowProblem(f"{where}: `content` is missing; write the {role}'s text")
    message["content"] = message["content"] or ""
    for key in _KEPT:
        if isinstance(raw.get(key), str):
            message[key] = encodable(raw[key], f"{where}: `{key}`")
    if role == "tool" and isinstance(raw.get("tool_call_id"), str):
        message["tool_call_id"] = encodable(raw["tool_call_id"], f"{where}: `tool_call_id`")
    return message, _weight(raw.get("weight"), role, where)


def _check_place(message: dict[str, Any], before: list[dict[str, Any]], number: int) -> None:
    if message["role"] != "tool":
        return
    calls: list[dict[str, Any]] = []
    for earlier in reversed(before):
        if earlier["role"] != "tool":
            calls = earlier.get("tool_calls", [])
            break
    if not calls:
        raise RowProblem(
            f"message {number} is a tool's, but no assistant message with `tool_calls` comes before it; add the call or remove the message"
        )
    ids = [c["id"] for c in calls if "id" in c]
    if "tool_call_id" in message and ids and message["tool_call_id"] not in ids:
        raise RowProblem(
            f"message {number} answers the tool call {message['tool_call_id'][:40]!r}, which was not made; there are {', '.join(ids)[:120]}"
        )


def _weight(value: Any, role: str, where: str) -> float:
    if value is None:
        return 1.0 if role == "assistant" else 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise RowProblem(f"{where}: `weight` must be a number from 0 (not learned) to 1, not {str(value)[:40]}")
    if role != "assistant" and value:
        raise RowProblem(f"{where}: only the assistant's messages are learned, so the {role}'s has no `weight`; remove it")
    return float(value)


def _content(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return encodable(value, f"{where}: `content`")
    if not isinstance(value, list):
        raise RowProblem(f"{where}: `content` must be text, this is {form(value)}; put it in quotes")
    texts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind != "text":
            raise RowProblem(
                f"{where}: a language model learns parts of type `text` only, not {str(kind or form(part))[:40]!r}; remove the part"
            )
        if not isinstance(part.get("text"), str):
            raise RowProblem(f"{where}: a part of type `text` needs its `text`; add it or remove the part")
        texts.append(encodable(part["text"], f"{where}: `content`"))
    return "".join(texts)


def _tool_calls(raw: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    calls = raw.get("tool_calls")
    if calls is None and raw.get("function_call") is not None:
        calls = [{"type": "function", "function": raw["function_call"]}]
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise RowProblem(f"{where}: `tool_calls` must be a list, this is {form(calls)}; put it in brackets")
    clean = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RowProblem(
                f'{where}: a tool call is {{"id": ..., "type": "function", "function": {{"name": ..., "arguments": ...}}}}; mend it'
            )
        name = encodable(function["name"], f"{where}: the tool's name")
        found: dict[str, Any] = {
            "type": "function",
            "function": {"name": name, "arguments": _arguments(function.get("arguments"), name, where)},
        }
        if isinstance(call.get("id"), str):
            found["id"] = encodable(call["id"], f"{where}: the call's id")
        clean.append(found)
    return clean


def _arguments(value: Any, name: str, where: str) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = parse(value)
        except ValueError as e:
            raise RowProblem(f"{where}: the arguments of `{name[:40]}` are not valid JSON ({e}); write a JSON object") from None
    if not isinstance(value, dict):
        raise RowProblem(f"{where}: the arguments of `{name[:40]}` are {form(value)}, not a JSON object; write {{...}}")
    _check_tree(value, f"{where}: the arguments of `{name[:40]}`")
    return value


def _tools(tools: Any, functions: Any) -> list[dict[str, Any]]:
    if tools is None and functions is not None:
        tools = [{"type": "function", "function": f} for f in functions] if isinstance(functions, list) else functions
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise RowProblem(f"`tools` must be a list, this is {form(tools)}; put it in brackets")
    for number, tool in enumerate(tools, 1):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RowProblem(f'tool {number} is not {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}; mend it')
    _check_tree(tools, "`tools`")
    return tools


def _check_tree(value: Any, where: str, depth: int = 0) -> None:
    if depth > _DEEPEST:
        raise RowProblem(f"{where}: nested deeper than {_DEEPEST} levels; flatten it")
    if isinstance(value, str):
        encodable(value, where)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            encodable(str(key), where)
            _check_tree(inner, where, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_tree(inner, where, depth + 1)


def encodable(text: str, where: str) -> str:
    """The text itself. Raises RowProblem when it holds half of a surrogate pair, which is no character and has no tokens."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as e:
            raise RowProblem(
                f"{where} holds half a character (\\u{ord(text[e.start]):04x}, a lone surrogate) at position {e.start + 1}; write it again"
            ) from None
    return text
