"""A preference row: one prompt, an answer that is preferred and one that is not.

Two forms are read. OpenAI's (guide "Direct preference optimization"; its API reference calls the two keys `preferred_completion` and
`non_preferred_completion`, which are read as well):

    {"input": {"messages": [...], "tools": [...]}, "preferred_output": [message, ...], "non_preferred_output": [message, ...]}

and that of TRL and most hub data sets, as text or as lists of messages; without `prompt` the two lists are whole conversations that
begin alike:

    {"prompt": ..., "chosen": ..., "rejected": ...}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery.data.json_rows import form
from tunery.data.messages import RowProblem, chat, encodable

__all__ = ["KEYS", "conversation", "is_pair", "pair", "prompt", "sides"]

_PREFERRED = ("preferred_output", "preferred_completion")
_OTHER = ("non_preferred_output", "non_preferred_completion")
KEYS = frozenset({"input", "chosen", "rejected", *_PREFERRED, *_OTHER})
"""The keys that make a preference row, beside `prompt`, `tools` and `functions`."""

Message = dict[str, Any]


def is_pair(raw: Mapping[str, Any]) -> bool:
    """Whether the row says which answer is better. Both `chosen` and `rejected` are needed where it could also be another kind of row."""
    if any(raw.get(key) is not None for key in (*_PREFERRED, *_OTHER)):
        return True
    given = [key for key in ("chosen", "rejected") if raw.get(key) is not None]
    if any(raw.get(key) is not None for key in ("messages", "completion", "text")):
        return len(given) == 2 and all(raw[key] for key in given)  # an empty cell of a table says nothing
    return bool(given)


def pair(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The row's value, checked. Raises RowProblem.

    Of text: {"prompt": str, "chosen": str, "rejected": str}. Of messages: {"messages": the prompt's, "chosen": [...], "rejected": [...],
    "weights": {"chosen": [float a message], "rejected": [...]}, "tools": [...] when there are any}.
    """
    names, prompt, chosen, rejected, tools, functions = _parts(raw)
    if all(isinstance(part, str) for part in (prompt, chosen, rejected)):
        value: dict[str, Any] = {}
        for key, name, text in (("prompt", "prompt", prompt), ("chosen", names[0], chosen), ("rejected", names[1], rejected)):
            value[key] = encodable(text, f"`{name}`")
            if not text.strip():
                raise RowProblem(f"`{name}` is empty; write the {'question' if key == 'prompt' else 'answer'} or remove the row")
        _check_different(names, [chosen], [rejected])
        return value
    before, first, second = _messages(names, prompt, chosen, rejected)
    whole = [_checked(name, before, side, tools, functions) for name, side in zip(names, (first, second), strict=True)]
    at = len(before)
    found = [w["messages"][at:] for w in whole]
    _check_different(names, *([_said(m) for m in side] for side in found))
    value = {
        "messages": whole[0]["messages"][:at],
        "chosen": found[0],
        "rejected": found[1],
        "weights": {"chosen": whole[0]["weights"][at:], "rejected": whole[1]["weights"][at:]},
    }
    if "tools" in whole[0]:
        value["tools"] = whole[0]["tools"]
    return value


def conversation(value: Mapping[str, Any]) -> list[Message]:
    """Everything that the row says: the prompt, the preferred answer, the other answer."""
    if "messages" in value:
        return [*value["messages"], *value["chosen"], *value["rejected"]]
    return [*prompt(value), *({"role": "assistant", "content": value[side]} for side in ("chosen", "rejected"))]


def prompt(value: Mapping[str, Any]) -> list[Message]:
    """What both sides answer, as messages."""
    return list(value["messages"]) if "messages" in value else [{"role": "user", "content": value["prompt"]}]


def sides(value: Mapping[str, Any]) -> tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]:
    """(kind, value) of the two rows that a pair is made of, the preferred one first: chats, or completions of text."""
    rows = []
    for side in ("chosen", "rejected"):
        if "messages" not in value:
            rows.append(("completion", {"prompt": value["prompt"], "completion": value[side]}))
            continue
        weights = [0.0] * len(value["messages"]) + value["weights"][side]
        tools = {"tools": value["tools"]} if "tools" in value else {}
        rows.append(("chat", {"messages": [*value["messages"], *value[side]], "weights": weights, **tools}))
    return rows[0], rows[1]


def _parts(raw: Mapping[str, Any]) -> tuple[tuple[str, str], Any, Any, Any, Any, Any]:
    """((name of the preferred side, name of the other), prompt, preferred, other, tools, functions), whatever the form."""
    openai = [next((key for key in keys if raw.get(key) is not None), None) for keys in (_PREFERRED, _OTHER)]
    if any(openai):
        for name, keys, other in zip(openai, (_PREFERRED, _OTHER), reversed(openai), strict=True):
            if name is None:
                raise RowProblem(f"missing column `{keys[0]}`: a row with `{other}` needs both; add it or remove the row")
        asked = raw.get("input")
        if not isinstance(asked, Mapping) or not isinstance(asked.get("messages"), list):
            what = "missing" if asked is None else "not an object with `messages`"
            raise RowProblem(f'`input` is {what}; write {{"messages": [{{"role": "user", "content": "..."}}]}}')
        names = (str(openai[0]), str(openai[1]))
        return names, asked["messages"], raw[names[0]], raw[names[1]], asked.get("tools"), asked.get("functions")
    for name, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if raw.get(name) is None:
            raise RowProblem(f"missing column `{name}`: a row with `{other}` needs both; add it or remove the row")
    return ("chosen", "rejected"), raw.get("prompt"), raw["chosen"], raw["rejected"], raw.get("tools"), raw.get("functions")


def _messages(names: tuple[str, str], prompt: Any, chosen: Any, rejected: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """(the prompt's messages, the preferred side's, the other side's), not yet checked."""
    answers = []
    for name, side in zip(names, (chosen, rejected), strict=True):
        if isinstance(side, Mapping):  # one message instead of a list of one
            side = [side]
        if isinstance(side, str):
            side = [{"role": "assistant", "content": side}]
        if not isinstance(side, list) or not side:
            what = "empty" if side == [] else form(side)
            raise RowProblem(f"`{name}` must be the answer, as text or as a list of messages, this is {what}; write the answer")
        answers.append(side)
    first, second = answers
    if all(_role(side[0]) not in ("assistant", None) for side in answers):  # whole conversations
        shared = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
        while shared and _role(first[shared - 1]) == "assistant":  # an answer that both begin with is still part of the answers
            shared -= 1
        before = first[:shared]
        if not before or any(_role(side[0]) not in ("assistant", None) for side in (first[shared:], second[shared:]) if side):
            raise RowProblem(f"`{names[0]}` and `{names[1]}` are conversations that do not begin alike; give both the same prompt")
        asked = before[-1].get("content") if isinstance(prompt, str) else before
        if prompt is not None and asked != prompt and prompt != before:
            raise RowProblem(f"`prompt` is not what `{names[0]}` and `{names[1]}` begin with; remove it from the one or from the others")
        return _not_learned(before), first[shared:], second[shared:]
    if prompt is None:
        raise RowProblem(f"missing column `prompt`: `{names[0]}` and `{names[1]}` are answers, so the row needs what was asked; add it")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise RowProblem("`prompt` is empty; write the question or remove the row")
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise RowProblem("the prompt must be text or a list of messages with at least one; write what was asked")
    return _not_learned(prompt), first, second


def _not_learned(prompt: list[Any]) -> list[Any]:
    """Only the two answers are compared and learned, also when the prompt holds earlier ones."""
    return [{**m, "weight": 0} if _role(m) == "assistant" else m for m in prompt]


def _checked(name: str, before: list[Any], side: list[Any], tools: Any, functions: Any) -> dict[str, Any]:
    if not side:
        raise RowProblem(f"`{name}` has no answer after the prompt; write it or remove the row")
    try:
        return chat([*before, *side], tools, functions)
    except RowProblem as e:
        raise RowProblem(f"`{name}`, with its prompt: {e}") from None


def _check_different(names: tuple[str, str], first: list[Any], second: list[Any]) -> None:
    if first == second:
        raise RowProblem(f"`{names[0]}` and `{names[1]}` are the same, so neither can be preferred; mend one or remove the row")
    if _without_space(first) == _without_space(second):
        raise RowProblem(
            f"`{names[0]}` and `{names[1]}` differ only in white space, which is hardly what is preferred; mend one or remove the row"
        )


def _said(message: Message) -> list[Any]:
    return [message["role"], message["content"], message.get("tool_calls")]


def _without_space(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(value.split())
    return [_without_space(v) for v in value] if isinstance(value, list) else value


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None
