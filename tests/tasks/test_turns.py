"""Conversations with tools, several answers and weights: each answer is learned once, with its weight, in every family's template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_families import make_tokenizer

from tunery import tasks
from tunery.data.render import Renderer
from tunery.data.rows import Row, read_rows
from tunery.data.tokenised import Tokenised, tokenise
from tunery.models.load import load_model
from tunery.train import attention, learners
from tunery.train.loop import accumulate

FAMILIES = ["smollm2", "tools", "llama3", "phi3", "qwen3", "alpaca"]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
TURNS = [("What is it?", "A cat."), ("And this?", "A small house."), ("Who?", "My friend, the teacher."), ("So?", "No.")]


def conversation(*weights: float | None) -> dict[str, Any]:
    """A chat of as many answers as weights; None: the row says nothing of it."""
    messages: list[dict[str, Any]] = []
    for (asked, answer), weight in zip(TURNS, weights, strict=False):
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        if weight is not None:
            messages[-1]["weight"] = weight
    return {"messages": messages}


ROWS = [
    conversation(None, 1),
    conversation(0, 1),
    conversation(1, 0, None, 0.25),
    conversation(None),
    conversation(0.5, 0.5, 0.5),
    conversation(1, 0),
]


@dataclass(frozen=True)
class Answer:
    """One assistant turn as it must be learned: after exactly the prompt that serving sends."""

    prompt: list[int]
    tokens: list[int]
    weight: float


def answers(tokenizer: Any, row: dict[str, Any]) -> list[Answer]:
    """By the template alone: each turn with a weight as the last of a conversation of its own."""
    renderer, found = Renderer(tokenizer), []
    for k, message in enumerate(row["messages"]):
        weight = message.get("weight", 1.0)
        if message["role"] != "assistant" or not weight:
            continue
        alone = Row("chat", {"messages": row["messages"][: k + 1], "weights": [0.0] * k + [1.0]}, "a", 1)
        (sequence,) = renderer.sequences(alone)
        at = np.flatnonzero(sequence.weights)
        prompt = tokenizer.apply_chat_template(row["messages"][:k], add_generation_prompt=True, tokenize=True, return_dict=False)
        assert sequence.tokens[: at[0]].tolist() == prompt
        found.append(Answer(prompt, sequence.tokens[at[0] : at[-1] + 1].tolist(), weight))
    return found


def view_of(tmp_path: Path, tokenizer: Any, rows: list[dict[str, Any]]) -> Tokenised:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = tokenise(str(file), None, Renderer(tokenizer), tmp_path / "cache")
    assert stored.problem_count == 0, [str(p) for p in stored.problems]
    return Tokenised([(stored, np.arange(len(stored.lines)))], 1000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random Llama whose vocabulary holds every family's."""
    from tiny import tiny_config
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide") / "llama"
    AutoModelForCausalLM.from_config(tiny_config("llama", vocab_size=1400)).save_pretrained(folder)
    make_tokenizer("smollm2").save_pretrained(folder)
    return load_model(folder, attention=attention.register()).requires_grad_(True)


def stretches(sequence: Any) -> list[tuple[list[int], list[int], float]]:
    """(what comes before, the learned tokens, their weight) of each learned stretch."""
    borders = [0, *(np.flatnonzero(np.diff(sequence.weights)) + 1).tolist(), len(sequence.tokens)]
    return [
        (sequence.tokens[:a].tolist(), sequence.tokens[a:b].tolist(), float(sequence.weights[a]))
        for a, b in pairwise(borders)
        if sequence.weights[a]
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_answer_is_learned_once_after_the_prompt_of_serving(tmp_path: Path, family: str) -> None:
    tokenizer = make_tokenizer(family)
    view = view_of(tmp_path, tokenizer, ROWS)
    for n, row in enumerate(ROWS):
        expected = [(a.prompt, a.tokens, a.weight) for a in answers(tokenizer, row)]
        assert [s for i in np.flatnonzero(view.rows == n).tolist() for s in stretches(view[i])] == expected
    rewrites = family in ("qwen3", "alpaca")  # history rewritten, or answers without an end of turn
    assert (len(view) > len(ROWS)) is rewrites


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [True, False])
def test_loss_and_denominator_are_the_weighted_answers_own(tmp_path: Path, model: Any, family: str, share: bool) -> None:
    """From the file to the gradient, against transformers alone, one answer at a time."""
    tokenizer = make_tokenizer(family)
    view = view_of(tmp_path, tokenizer, ROWS)
    wanted = [a for row in ROWS for a in answers(tokenizer, row)]
    weight = sum(a.weight * len(a.tokens) for a in wanted)
    assert view.supervised.sum() == weight
    assert view.learned.sum() == sum(len(a.tokens) for a in wanted)
    model.set_attn_implementation(attention.NAME)
    found = accumulate(
        model, learners.get(tasks.get("chat"), None, share), [view[n] for n in range(len(view))], float(view.supervised.sum())
    )
    ours = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation("eager")
    total = 0.0
    for answer in wanted:
        ids = torch.tensor([answer.prompt + answer.tokens])
        logits = model(input_ids=ids).logits[0, len(answer.prompt) - 1 : -1]
        loss = answer.weight / weight * torch.nn.functional.cross_entropy(logits, torch.tensor(answer.tokens), reduction="sum")
        loss.backward()
        total += loss.item()
    assert found == pytest.approx(total, abs=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    model.zero_grad()


def test_a_weight_scales_its_answer_and_the_denominator(tmp_path: Path, model: Any) -> None:
    """Half the weight on one of two answers: (a + b / 2) / (|a| + |b| / 2), not the mean of two means."""
    tokenizer = make_tokenizer("smollm2")
    model.set_attn_implementation(attention.NAME)
    learner = learners.get(tasks.get("chat"))

    def sums(*weights: float) -> tuple[float, float]:
        folder = tmp_path / "-".join(map(str, weights))
        folder.mkdir()
        view = view_of(folder, tokenizer, [conversation(*weights)])
        with torch.no_grad():
            found = [learner.loss(model, b) for b in learner.batches(model, [view[n] for n in range(len(view))])]
        return sum(n.item() for n, _ in found), sum(w.item() for _, w in found)

    first, second, both = sums(1, 0), sums(0, 1), sums(1, 0.5)
    assert both[0] == pytest.approx(first[0] + second[0] / 2, abs=1e-4)
    assert both[1] == first[1] + second[1] / 2


def test_tool_calls_and_answers_after_tools_are_learned_and_results_are_not(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Split"}'}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is it in Split?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "23 degrees"},
        {"role": "assistant", "content": "Warm.", "weight": 0.5},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "You are welcome.", "weight": 0},
    ]
    tokenizer = make_tokenizer("tools")
    view = view_of(tmp_path, tokenizer, [{"messages": messages, "tools": [TOOL]}])
    (row,) = read_rows(str(tmp_path / "a.jsonl"))
    found = [(tokenizer.decode(tokens), weight) for n in range(len(view)) for _, tokens, weight in stretches(view[n])]
    assert found == [
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Split"}}\n</tool_call><|im_end|>', 1.0),
        ("Warm.<|im_end|>", 0.5),
    ]
    for k, (before, _, _) in zip((2, 4), stretches(view[0]), strict=True):
        known = row.value["messages"][:k]
        prompt = tokenizer.apply_chat_template(known, tools=[TOOL], add_generation_prompt=True, tokenize=True, return_dict=False)
        assert before == prompt
    assert view.supervised[0] == sum(weight * len(tokens) for _, tokens, weight in stretches(view[0]))
