"""Evaluation in one reading gives what likelihoods, labels and answers give when each is computed its own way."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_model

from tunery import tasks
from tunery.data.render import Renderer
from tunery.data.rows import Row
from tunery.evaluate import by_answer, one_reading
from tunery.models.load import load_model, load_tokenizer
from tunery.progress import Quiet
from tunery.train import attention

WORDS = ("cat", "river", "friend", "garden", "headline", "yes", "no", "cold water", "an old song")
KINDS = ("llama", "phi3", "qwen3", "phi3 sliding")


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    window = {"sliding_window": 7} if "sliding" in request.param else {}
    return tiny_model(tmp_path, request.param.split()[0], initializer_range=0.2, **window)


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def chats(count: int, labels: bool) -> list[Row]:
    """Questions with a common beginning; some conversations have two learned answers."""
    rng = random.Random(0)
    rows = []
    for n in range(count):
        question = {"role": "user", "content": f"Is this true? {text(rng, rng.randint(1, 9))}"}
        answer = {"role": "assistant", "content": rng.choice(("yes", "no")) if labels else f"{n} {text(rng, rng.randint(1, 6))}"}
        messages, weights = [question, answer], [0.0, 1.0]
        if n % 4 == 0:
            messages, weights = [question, {"role": "assistant", "content": "who?"}, *messages], [0.0, 1.0, 0.0, 0.5]
        rows.append(Row("chat", {"messages": messages, "weights": weights}, "test.jsonl", n + 1))
    return rows


def predicted(
    model: Any, renderer: Renderer, rows: list[Row], max_length: int = 1024, new_tokens: int | None = None
) -> list[dict[str, Any]]:
    return by_answer.predict(model, renderer, tasks.get("chat"), rows, max_length, 1024, new_tokens, Quiet(), "before")


@pytest.mark.parametrize(("labels", "max_length"), [(True, 1024), (False, 1024), (True, 40)])
def test_one_reading_gives_what_three_gave(folder: Path, labels: bool, max_length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, renderer = load_model(folder, attention=attention.register()), Renderer(load_tokenizer(folder))
    rows = chats(24, labels)
    found = predicted(model, renderer, rows, max_length)
    assert found[0]["row"] == 0
    monkeypatch.setattr(one_reading, "able", lambda *args: False)
    expected = predicted(model, renderer, rows, max_length)
    for line, other in zip(found, expected, strict=True):
        assert line.pop("nll") == pytest.approx(other.pop("nll"), rel=1e-5)
        assert line == other
    assert ("label" in found[0]) is labels


def test_an_answer_that_is_a_label_needs_no_further_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is asked for nothing once the tree has the whole answer; from a token that is in no given answer on, it is asked."""
    model, renderer = load_model(folder, attention=attention.register()), Renderer(load_tokenizer(folder))
    rows = chats(6, labels=True)
    asked = [renderer.prompt(row).ids for row in rows]
    plain = [
        by_answer.TorchEngine(model, renderer.tokenizer, (), 1024).generate([ids], by_answer.Sampling(max_new_tokens=5))[0] for ids in asked
    ]
    # What the model says anyway becomes a given answer of the first rows: whole with its stop token, and its beginning only.
    steps = []

    def counted(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[1] == 1:
            steps.append(len(kwargs["input_ids"]))

    model.register_forward_pre_hook(counted, with_kwargs=True)

    class Given:
        def __init__(self, tokens: list[int], learned: int) -> None:
            self.tokens = np.array(tokens, np.int32)
            self.weights = np.array([0.0] * (len(tokens) - learned) + [1.0] * learned, np.float32)

    def ask(given: list[list[Given]], stop: tuple[int, ...]) -> list[list[int]]:
        steps.clear()
        return one_reading.ask(model, given, asked, 5, 1024, stop, lambda done, total: None)[1]

    whole = [[Given(ids + said, 5)] for ids, said in zip(asked, plain, strict=True)]
    assert ask(whole, ()) == plain
    assert steps == []
    beginning = [[Given(ids + said[:3], 3), Given([*ids, 4, 5], 2)] for ids, said in zip(asked, plain, strict=True)]
    assert ask(beginning, ()) == plain
    assert steps == [6, 6]
    stop = plain[0][3]
    assert ask(whole, (stop,)) == [said[: said.index(stop)] if stop in said else said for said in plain]
    assert steps == []
