"""Probe conversations: their token ids are stored with a run, and every export and server must reproduce them exactly.

A model that is served with another template, another beginning of text or other special tokens than it was trained with answers
badly, and nothing else shows why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.data.rows import Row
from tunery.errors import InputError, ProofError
from tunery.models.load import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tunery.data.render import Renderer
    from tunery.infer.onnx_engine import OnnxEngine

_SYSTEM = {"role": "system", "content": "You answer in one word."}
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Its name"}}, "required": ["city"]},
    },
}


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


CONVERSATIONS: tuple[tuple[dict[str, Any], ...], ...] = (
    (_user("Hello"),),
    (_SYSTEM, _user("Is water wet?")),
    (_user("What is 2 + 2?"), _assistant("4"), _user("And 3 + 3?")),
    (_SYSTEM, _user("Yes or no?"), _assistant("Yes"), _user("Why?"), _assistant("Because."), _user("Really?")),
    (_user("Dvořák, Čapek, naïve café; 東京 привет שלום 🙂👩‍🚀"),),
    (_user("\nA line break first, and one last\n"),),
    (_user("   three spaces, a\ttab, and trailing spaces   "),),
    (_user("def f(x):\n    return {'a': [x, 1.5e-3]}\n\n\nprint(f(2))"),),
    (_user("12345678901234567890 0.000123 1,000,000"),),
    (_user("ALL CAPITALS, MiXeD, and-hyphens_and_underscores"),),
    (_user("a" * 100 + " " + "ha" * 60),),
    (_user("e\u0301 is not \u00e9; \u200b\u00a0\ufeffinvisible"),),
)
TEXTS = tuple(conversation[-1]["content"] for conversation in CONVERSATIONS)


def make_probes(renderer: Renderer) -> list[dict[str, Any]]:
    """`{"messages", "tools", "text", "ids"}` of each probe; for a model without a chat template `{"text", "ids"}`.

    Conversations that the template refuses (some know no system prompt) are left out; the first, one user's turn, may not be.
    """
    if not renderer.tokenizer.chat_template:
        return [
            {"text": t, "ids": renderer.prompt(Row("completion", {"prompt": t, "completion": ""}, "probe", n)).ids}
            for n, t in enumerate(TEXTS)
        ]
    probes = []
    for n, conversation in enumerate(CONVERSATIONS):
        messages = list(conversation)
        try:
            probes.append(_probe(renderer, messages, None))
        except InputError:
            if n == 0:
                raise
    with_tool = _probe(renderer, list(CONVERSATIONS[0]), [_TOOL])
    if with_tool["ids"] != probes[0]["ids"]:  # else the template does not show tools
        probes.append(with_tool)
    return probes


def _probe(renderer: Renderer, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> dict[str, Any]:
    ids = renderer.prompt_of(messages, tools)
    return {"messages": messages, "tools": tools, "text": renderer.template.prompt(messages, tools), "ids": ids}


def verify_probes(probes: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast | Path, who: str) -> None:
    """Raises ProofError when this tokenizer (or the one in this folder) and its template give other ids than training saw.

    The template is applied as any user of transformers applies it, not by the code that rendered the rows.
    """
    if isinstance(tokenizer, Path):
        tokenizer = load_tokenizer(tokenizer)
    for n, probe in enumerate(probes):
        expected = list(probe["ids"])
        try:
            found = _ids(tokenizer, probe)
        except Exception as e:  # a template may raise anything
            raise ProofError(
                f"{who}: the chat template refuses probe {n} ({(str(e).splitlines() or [repr(e)])[0][:200]}), which training rendered"
            ) from None
        if found != expected:
            at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected)))
            raise ProofError(
                f"{who}: tokenizer and template give other ids than in training: probe {n}, place {at}: "
                f"{found[at : at + 5]} instead of {expected[at : at + 5]} ({tokenizer.decode(expected[at : at + 5])!r})"
            )


def _ids(tokenizer: PreTrainedTokenizerFast, probe: dict[str, Any]) -> list[int]:
    if "messages" not in probe:
        return list(tokenizer(probe["text"]).input_ids)
    ids: Any = tokenizer.apply_chat_template(
        probe["messages"], tools=probe["tools"] or None, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def genai_reproduces(probes: list[dict[str, Any]], engine: OnnxEngine) -> bool:
    """Whether onnxruntime-genai's own tokenizer and template give the same ids, as programs without transformers will use them."""
    from tunery.infer.onnx_engine import import_genai

    try:
        own = import_genai().Tokenizer(engine.model)
        for probe in probes:
            text = probe["text"]
            if "messages" in probe:
                text = own.apply_chat_template(
                    json.dumps(probe["messages"]), **({"tools": json.dumps(probe["tools"])} if probe["tools"] else {})
                )
            if text != probe["text"] or [int(i) for i in own.encode(text)] != list(probe["ids"]):
                return False
    except Exception:
        return False
    return True
