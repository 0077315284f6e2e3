from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunery.errors import InputError, ProofError
from tunery.export.proof import SAME_MODEL, TOKENS, Figures, Reference, prove_held_out
from tunery.export.source import ExportSource
from tunery.infer.torch_engine import TorchEngine
from tunery.models.load import load_model, load_tokenizer


class Altered:
    """An engine whose logits at chosen positions are changed; positions count from the end of what is read."""

    def __init__(self, engine: TorchEngine, change: Any) -> None:
        self.engine, self.change = engine, change

    def logits(self, tokens: list[int]) -> np.ndarray:
        values = self.engine.logits(tokens)
        changed: np.ndarray = self.change(values)
        return changed


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> TorchEngine:
    return TorchEngine(load_model(tiny_llama), load_tokenizer(tiny_llama), (2,))


@pytest.fixture(scope="module")
def reference(engine: TorchEngine, llama: ExportSource) -> Reference:
    return Reference.of(engine.model, engine.tokenizer, llama.prompts[:10])


def compare(reference: Reference, engine: TorchEngine, change: Any) -> Figures:
    return reference.compare(Altered(engine, change), "test")  # type: ignore[arg-type]


def test_a_model_is_itself(reference: Reference, engine: TorchEngine) -> None:
    assert reference.compare(engine, "test") == Figures(1.0, 0.0)


def test_the_text_read_is_the_models_own_greedy_continuation(reference: Reference, engine: TorchEngine) -> None:
    for prompt, continuation in zip(reference.prompts, reference.continuations, strict=True):
        assert len(continuation) == TOKENS
        text = prompt + continuation
        assert engine.logits(text)[len(prompt) - 1 : -1].argmax(-1).tolist() == continuation


def test_the_continuation_goes_on_after_a_stop_token(engine: TorchEngine, llama: ExportSource) -> None:
    import torch

    model = load_model(llama.base_folder)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # untie: only the output changes
    model.lm_head.weight.data[2] = 0.0
    head: Any = model.lm_head
    head.register_forward_hook(
        lambda _module, _args, out: torch.nn.functional.one_hot(torch.full(out.shape[:-1], 2), out.shape[-1]).to(out.dtype)
    )
    found = Reference.of(model, engine.tokenizer, llama.prompts[:2])
    assert found.continuations == [[2] * TOKENS] * 2


@pytest.mark.parametrize("wrong", [0, 1, 5])
def test_greedy_match_counts_exactly_the_changed_positions(reference: Reference, engine: TorchEngine, wrong: int) -> None:
    def change(values: np.ndarray) -> np.ndarray:
        for place in range(1, wrong + 1):
            values[-place, values[-place].argmin()] = values[-place].max() + 1
        return values

    assert compare(reference, engine, change).greedy_match == pytest.approx(1 - wrong / TOKENS, abs=1e-12)


def test_only_the_continuation_counts_not_the_prompt(reference: Reference, engine: TorchEngine) -> None:
    def change(values: np.ndarray) -> np.ndarray:
        values[: len(values) - TOKENS] = -values[: len(values) - TOKENS]
        return values

    assert compare(reference, engine, change) == Figures(1.0, 0.0)


def test_the_difference_is_the_largest_over_positions_and_tokens(reference: Reference, engine: TorchEngine) -> None:
    def change(values: np.ndarray) -> np.ndarray:
        values[-TOKENS, 400] -= 0.125
        values[-1, 7] -= 0.25
        return values

    assert compare(reference, engine, change).max_logit_difference == pytest.approx(0.25, abs=1e-6)


def test_what_is_no_number_or_another_vocabulary_fails(reference: Reference, engine: TorchEngine) -> None:
    def broken(values: np.ndarray) -> np.ndarray:
        values[-3, 4] = np.nan
        return values

    with pytest.raises(ProofError, match="not numbers"):
        compare(reference, engine, broken)
    with pytest.raises(ProofError, match=r"511 logits a token .* 512"):
        compare(reference, engine, lambda values: values[:, :-1])


def test_the_bound_and_the_figures_in_the_error() -> None:
    Figures(SAME_MODEL, 3.0).require_same("x")
    with pytest.raises(ProofError, match=r"merged: .*greedy_match 0\.9981 is below 0\.999, max_logit_difference 0\.1235"):
        Figures(0.9981, 0.12345).require_same("merged")


@pytest.mark.parametrize("prompt", [[], [5] * 993])
def test_a_prompt_without_room_for_the_continuation_is_refused(engine: TorchEngine, prompt: list[int]) -> None:
    with pytest.raises(InputError, match="proof prompt"):
        Reference.of(engine.model, engine.tokenizer, [prompt])


def test_a_lost_metric_names_its_figures() -> None:
    measured = {"metric": "accuracy", "value": 0.8, "low": 0.75, "high": 0.85, "export_value": 0.7, "kept": False}
    with pytest.raises(ProofError, match=r"onnx int4: accuracy .* 0\.7000, outside .* 0\.7500 to 0\.8500"):
        prove_held_out(measured, "onnx int4")
    prove_held_out({**measured, "export_value": 0.9, "kept": True}, "onnx int4")
