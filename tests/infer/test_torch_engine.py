from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_model

from tunery.errors import InputError
from tunery.infer.sampling import Sampling
from tunery.infer.torch_engine import TorchEngine
from tunery.models.load import load_model, load_tokenizer


def prompts_of_all_lengths(count: int = 12, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 440) for _ in range(rng.randint(1, 60))] for _ in range(count)]


def engine_of(folder: Path, stop_ids: tuple[int, ...] = (), **settings: Any) -> TorchEngine:
    return TorchEngine(load_model(folder), load_tokenizer(folder), stop_ids, **settings)


def by_hand(engine: TorchEngine, prompt: list[int], new_tokens: int) -> list[int]:
    """Greedy without cache, batch or transformers' generate: the next token is the argmax of a whole forward pass."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        token = int(engine.logits(tokens)[-1].argmax())
        if token in engine.stop_ids:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


def test_batched_is_unbatched_is_streamed_is_by_hand(tiny_any: Path) -> None:
    prompts = prompts_of_all_lengths()
    first = by_hand(engine_of(tiny_any), prompts[0], 12)
    engine = engine_of(tiny_any, stop_ids=(first[7], 2))  # so that at least one answer stops
    sampling = Sampling(max_new_tokens=12)
    together = engine.generate(prompts, sampling)
    assert together == [engine.generate([p], sampling)[0] for p in prompts]
    assert together == [list(engine.stream(p, sampling)) for p in prompts]
    assert together == [by_hand(engine, p, 12) for p in prompts]
    assert len(together[0]) <= 7
    assert max(len(a) for a in together) == 12


def test_answers_are_in_the_callers_order_over_several_batches(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompts, sampling = engine_of(tiny_llama), prompts_of_all_lengths(20, seed=1), Sampling(max_new_tokens=6)
    expected = engine.generate(prompts, sampling)
    monkeypatch.setattr("tunery.infer._reading.TOKENS", 150)
    told: list[tuple[int, int]] = []
    assert engine.generate(prompts, sampling, lambda done, total: told.append((done, total))) == expected
    assert len(told) > 3
    assert told == sorted(told)
    assert told[-1] == (20, 20)


def test_what_the_models_own_files_say_of_sampling_changes_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    prompts, sampling = prompts_of_all_lengths(), Sampling(max_new_tokens=8)
    expected = engine_of(tiny_llama).generate(prompts, sampling)
    folder = tiny_model(tmp_path / "model", "llama")
    (folder / "generation_config.json").write_text(
        json.dumps(
            {
                "do_sample": True,
                "temperature": 9.0,
                "repetition_penalty": 5.0,
                "eos_token_id": list(range(400)),
                "max_new_tokens": 3,
                "min_length": 5,
            }
        )
    )
    engine = engine_of(folder)
    own = engine.model.generation_config
    assert own is not None
    assert own.repetition_penalty == 5.0  # it was read, and would count
    assert engine.generate(prompts, sampling) == expected
    assert [list(engine.stream(p, sampling)) for p in prompts] == expected
    assert engine.model.generation_config is own


def test_the_context_ends_an_answer_and_no_neighbour_shortens_another(tiny_llama: Path) -> None:
    engine = engine_of(tiny_llama, context=64)
    prompts = [[5] * 60, [6] * 10, [7] * 61]
    sampling = Sampling(max_new_tokens=20)
    assert [len(a) for a in engine.generate(prompts, sampling)] == [4, 20, 3]
    assert len(list(engine.stream(prompts[0], sampling))) == 4
    for answer in (
        lambda: engine.generate([[5] * 64], sampling),
        lambda: list(engine.stream([5] * 64, sampling)),
        lambda: engine.logits([5] * 65),
    ):
        with pytest.raises(InputError, match="too many"):
            answer()
    assert engine.logits([5] * 64).shape == (64, 512)


def test_the_context_is_the_models_own(tiny_llama: Path) -> None:
    assert engine_of(tiny_llama).context == 1024


def test_draws_repeat_by_seed_and_leave_torchs_random_state_alone(tiny_llama: Path) -> None:
    import torch

    engine, prompts = engine_of(tiny_llama), prompts_of_all_lengths(3)
    hot = {"temperature": 1.5, "top_p": 0.95, "top_k": 100, "max_new_tokens": 8}
    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    first = engine.generate(prompts, Sampling(seed=1, **hot))  # type: ignore[arg-type]
    streamed = list(engine.stream(prompts[0], Sampling(seed=1, **hot)))  # type: ignore[arg-type]
    assert torch.equal(torch.rand(1), expected)
    assert engine.generate(prompts, Sampling(seed=1, **hot)) == first  # type: ignore[arg-type]
    assert engine.generate(prompts, Sampling(seed=2, **hot)) != first  # type: ignore[arg-type]
    assert list(engine.stream(prompts[0], Sampling(seed=1, **hot))) == streamed  # type: ignore[arg-type]
    assert list(engine.stream(prompts[0], Sampling(seed=2, **hot))) != streamed  # type: ignore[arg-type]


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}])
def test_drawing_from_one_token_is_greedy(tiny_llama: Path, narrow: dict[str, Any]) -> None:
    engine, prompts = engine_of(tiny_llama), prompts_of_all_lengths(3)
    greedy = engine.generate(prompts, Sampling(max_new_tokens=6))
    sampling = Sampling(temperature=2.0, max_new_tokens=6, **narrow)
    assert engine.generate(prompts, sampling) == greedy
    assert [list(engine.stream(p, sampling)) for p in prompts] == greedy


def test_logits_are_float32_of_every_position_and_need_no_later_token(tiny_any: Path) -> None:
    engine = engine_of(tiny_any)
    tokens = prompts_of_all_lengths(1, seed=3)[0] + [9, 8, 7]
    whole = engine.logits(tokens)
    assert whole.shape == (len(tokens), 512)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(engine.logits(tokens[:-2]), whole[:-2], atol=1e-5)


def test_training_mode_is_put_back(tiny_llama: Path) -> None:
    engine = engine_of(tiny_llama)
    engine.model.train()
    engine.generate([[5, 6]], Sampling(max_new_tokens=2))
    stream = engine.stream([5, 6], Sampling(max_new_tokens=5))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert engine.model.training


@pytest.mark.real
def test_the_real_model_batched_is_unbatched_and_stops_by_itself(smollm2: Path) -> None:
    from tunery.data.render import Renderer

    tokenizer = load_tokenizer(smollm2)
    renderer = Renderer(tokenizer)
    engine = TorchEngine(load_model(smollm2), tokenizer, renderer.stop_ids)
    asked = ["Hi", "What is the capital of France?", "Name a colour.", "Write one short sentence about the sea and old ships."]
    prompts = [renderer.prompt_of([{"role": "user", "content": text}]) for text in asked]
    sampling = Sampling(max_new_tokens=24)
    together = engine.generate(prompts, sampling)
    assert together == [engine.generate([p], sampling)[0] for p in prompts]
    assert together == [list(engine.stream(p, sampling)) for p in prompts]
    assert len(together[0]) < 24
    assert "Paris" in tokenizer.decode(together[1])
