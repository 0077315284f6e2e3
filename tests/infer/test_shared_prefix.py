"""Answers to many prompts at once, with what they begin with computed once, are those of greedy decoding row by row."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from tunery.infer import _reading
from tunery.infer._answering import Answer, begin, go_on
from tunery.infer._reading import Reader, Wanted, able, together
from tunery.infer._shared_attention import AnsweringCache, Beginning, seen_by
from tunery.infer.sampling import Sampling
from tunery.infer.torch_engine import TorchEngine
from tunery.kernels import library
from tunery.models.load import load_model, load_tokenizer
from tunery.train import attention

KINDS = ("llama", "phi3", "qwen3", "phi3 sliding", "gemma2")


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A small model of each kind of attention: Gemma 2's has windows in every second layer, and soft caps on scores and logits."""
    kind = request.param
    if kind == "gemma2":
        from transformers import AutoConfig, AutoModelForCausalLM

        common = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
        own = {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 6, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 9.0}
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **common, **own, initializer_range=0.2)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        return load_model(tmp_path, attention=attention.register())
    window = {"sliding_window": 5} if "sliding" in kind else {}
    folder = tiny_model(tmp_path, kind.split()[0], initializer_range=0.2, **window)
    return load_model(folder, attention=attention.register())


def prompts(seed: int = 0, count: int = 14, shared: int = 9) -> list[list[int]]:
    """Most begin alike, some more alike than others; one is the beginning of another, and two are the same."""
    rng = random.Random(seed)
    draw = lambda n: [rng.randrange(3, 440) for _ in range(n)]  # noqa: E731
    beginning, further = draw(shared), draw(6)
    found = [beginning + (further if n % 3 == 0 else []) + draw(rng.randint(1, 12)) for n in range(count - 2)]
    return [*found, found[3][:-1] or found[3], found[4]]


def alone(model: Any, prompt: list[int], new_tokens: int, stop_ids: tuple[int, ...] = ()) -> tuple[list[int], torch.Tensor]:
    """The greedy answer and the logits of each of its tokens by transformers' eager attention over one whole row, without a cache."""
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    tokens, logits = list(prompt), []
    for _ in range(new_tokens):
        with torch.inference_mode():
            logits.append(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1])
        token = int(logits[-1].argmax())
        if token in stop_ids:
            break
        tokens.append(token)
    model.set_attn_implementation(own)
    return tokens[len(prompt) :], torch.stack(logits)


def together_with_logits(model: Any, rows: list[list[int]], new_tokens: int) -> list[tuple[list[int], torch.Tensor]]:
    """As `alone`, of all rows at once."""
    seen: list[list[torch.Tensor]] = [[] for _ in rows]
    arrays = [np.array(r) for r in rows]
    answers: list[Answer] = []

    def draw(logits: torch.Tensor) -> torch.Tensor:
        going = [a for a in answers if len(a.tokens) < a.limit] or [Answer(n, 0, [], 0) for n in range(len(rows))]
        for answer, row in zip(going, logits, strict=True):
            seen[answer.row].append(row.float())
        return logits.argmax(-1)

    with seen_by(model), torch.inference_mode():
        reader = Reader(model)
        read = reader.read([Wanted(a, np.array([len(a) - 1])) for a in arrays])
        answers += begin(reader, read, [(len(r), new_tokens) for r in rows], draw, ())
        go_on(reader, read, answers, draw, ())
    return [(a.tokens, torch.stack(s)) for a, s in zip(answers, seen, strict=True)]


@pytest.mark.parametrize("read_tokens", [512, 40])
def test_tokens_and_logits_are_those_of_each_row_alone(model: Any, read_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reading, "READ_TOKENS", read_tokens)  # 40: the shared beginning apart, and several packs after it
    rows = prompts()
    for row, (tokens, logits) in zip(rows, together_with_logits(model, rows, 8), strict=True):
        expected, their_logits = alone(model, row, 8)
        assert tokens == expected
        torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dense", [True, False])
def test_both_ways_of_attending_are_the_same(model: Any, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunery.infer import _shared_attention

    monkeypatch.setattr(_reading, "READ_TOKENS", 40)
    used = []
    plain = _shared_attention.ReadingCache.__init__

    def chosen(self: Any, *args: Any) -> None:
        plain(self, *args)
        self.dense = dense
        used.append(len(self.beginning))

    monkeypatch.setattr(_shared_attention.ReadingCache, "__init__", chosen)
    rows = prompts(seed=1)
    for row, (tokens, logits) in zip(rows, together_with_logits(model, rows, 3), strict=True):
        expected, their_logits = alone(model, row, 3)
        assert tokens == expected
        torch.testing.assert_close(logits, their_logits, atol=1e-5, rtol=1e-5)
    assert used[0] == 0
    assert set(used[1:]) == {9}


def test_the_engine_stops_each_row_by_itself(model: Any, tmp_path: Path) -> None:
    rows = prompts(seed=2)
    stop = alone(model, rows[0], 4)[0][3]
    engine = TorchEngine(model, load_tokenizer(tmp_path), (stop,))
    expected = [alone(model, row, 9, (stop,))[0] for row in rows]
    assert engine.generate(rows, Sampling(max_new_tokens=9)) == expected
    assert len({len(answer) for answer in expected}) > 1
    assert model.config._attn_implementation == attention.NAME


def test_a_beginning_that_the_next_rows_share_in_part_is_read_in_part(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reading, "READ_TOKENS", 32)
    model = load_model(tiny_llama)
    read = []
    states = Reader._states

    def counted(self: Reader, packed: Any, beginning: Any) -> Any:
        read.append((len(beginning), len(packed.tokens)))
        return states(self, packed, beginning)

    monkeypatch.setattr(Reader, "_states", counted)
    head = list(range(10, 40))
    first, second = ([[*head[:end], n, *range(100 + n, 110 + n)] for n in range(4)] for end in (30, 20))
    with seen_by(model), torch.inference_mode():
        reader = Reader(model)
        for rows in (first, second, first):
            found = reader.read([Wanted(np.array(r), np.array([len(r) - 1])) for r in rows])
            logits = reader.head(found.hidden[[int(at[0]) for at in found.at]])
            theirs = torch.stack([alone_logits(model, r) for r in rows])
            torch.testing.assert_close(logits, theirs, atol=1e-5, rtol=1e-5)
    assert read[0] == (0, 30)  # the shared beginning
    assert [r for r in read if r[1] in (10, 20, 30)] == [(0, 30), (20, 10)]  # once, and again only what had been let go
    assert all(size <= 32 for _, size in read)


def alone_logits(model: Any, row: list[int]) -> torch.Tensor:
    other = load_model(Path(model.name_or_path))
    logits: torch.Tensor = other(input_ids=torch.tensor([row])).logits[0, -1]
    return logits


def test_prompts_of_one_family_are_answered_together() -> None:
    families = [[1] * 200, [2] * 200]
    rows = [np.array([*families[n % 2], 5, n + 10]) for n in range(20)]
    groups = list(together(rows, 8))
    assert [{n % 2 for n in group} for group in groups] == [{0}, {1}]
    assert sorted(n for group in groups for n in group) == list(range(20))
    assert all(len(group) <= _reading.ROWS for group in together([np.array([1, n]) for n in range(500)], 8))


def test_what_cannot_share_is_seen_before(tiny_llama: Path) -> None:
    config = (model := load_model(tiny_llama)).config
    assert able(model, 60)
    config.layer_types = ["full_attention", "linear_attention"]
    assert not able(model, 60)
    config.layer_types = ["full_attention", "full_attention"]
    config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 50}
    assert able(model, 50)
    assert not able(model, 51)  # the frequencies of a row would depend on its longest neighbour


def test_where_sharing_is_not_possible_transformers_answers_the_same(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(load_model(tiny_llama), load_tokenizer(tiny_llama), (7,))
    rows = prompts()
    shared = engine.generate(rows, Sampling(max_new_tokens=5))
    called = []
    plain: Any = engine.model.generate

    def counted(*args: Any, **kwargs: Any) -> Any:
        called.append(args)
        return plain(*args, **kwargs)

    monkeypatch.setattr(engine.model, "generate", counted)
    engine.generate(rows, Sampling(max_new_tokens=5))
    assert not called
    monkeypatch.setattr(_reading, "able", lambda *args: False)
    assert engine.generate(rows, Sampling(max_new_tokens=5)) == shared
    assert called


def test_a_method_that_keeps_rows_apart_is_answered_by_transformers(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    assert able(model, 60)
    model.virtual_tokens = 4  # type: ignore[assignment]
    assert not able(model, 60)
    del model.virtual_tokens
    model.rows_apart = True  # type: ignore[assignment]
    assert not able(model, 60)


def test_rows_that_ended_are_no_longer_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny_model(tmp_path, "llama", initializer_range=0.2))
    rows = prompts(seed=3)
    ends = [alone(model, row, 6)[0] for row in rows]
    sizes = []
    plain = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        sizes.append(kwargs["input_ids"].shape)
        return plain(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    stop = ends[0][3]
    TorchEngine(model, load_tokenizer(tmp_path), (stop,)).generate(rows, Sampling(max_new_tokens=6))
    going = [sum(stop not in end[: step + 1] for end in ends) for step in range(5)]
    assert [shape[0] for shape in sizes if shape[1] == 1] == [n for n in going if n]
    assert 0 < going[-1] < going[0]


@pytest.mark.skipif(library.library() is None, reason="there is no C compiler here, so torch's own operations are used")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shared", "d", "cap"), [(0, 64, None), (7, 64, None), (5, 128, None), (9, 48, 5.0), (3, 256, None), (3, 20, None)]
)
def test_one_token_a_row_by_the_kernel_and_by_torch(shared: int, d: int, cap: float | None, dtype: torch.dtype) -> None:
    """Keys that all rows share, and rows of different lengths beside room that was not yet filled."""
    generator = torch.Generator().manual_seed(d + shared)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    rows, heads, key_heads, width = 5, 6, 2, 8
    beginning = Beginning(np.arange(shared), [(draw(key_heads, shared, d), draw(key_heads, shared, d))] if shared else [])
    own = (draw(key_heads, rows, width + 3, d), draw(key_heads, rows, width + 3, d))
    for x in own:
        x[:, :, width + 1 :] = float("nan")  # not filled
    cache = AnsweringCache(beginning, [own], torch.tensor([8, 3, 5, 1, 8]), width)
    query, layer = draw(rows, heads, 1, d), torch.nn.Module()
    layer.layer_idx = 0
    mask = cache.mask(lambda batch, head, q, k: (q - k) < 6 if d == 128 else q == q, dtype)  # a sliding window for one
    found = cache.attend(layer, query, own[0], own[1], mask, 0.3, cap)
    with library.without():
        expected = cache.attend(layer, query, own[0], own[1], mask, 0.3, cap)
    assert found.shape == (rows, 1, heads, d)
    close = 1e-5 if dtype == torch.float32 else 0.01
    torch.testing.assert_close(found, expected, atol=close, rtol=close)
