"""What needs no generation is here; that ONNX Runtime generates what torch does is tested with the exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunery.errors import InputError, MissingExtraError
from tunery.infer import onnx_engine
from tunery.infer.onnx_engine import OnnxEngine
from tunery.infer.sampling import Sampling

pytest.importorskip("onnxruntime_genai", reason="pip install 'tunery[onnx]'")


@pytest.fixture(scope="module")
def engine(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxEngine:
    from tunery.export.onnx import build

    folder = tmp_path_factory.mktemp("onnx")
    build(tiny_llama, folder / "model", "fp32", folder / "cache", folder / "log")
    return OnnxEngine(folder / "model")


def test_draws_repeat_by_seed(engine: OnnxEngine) -> None:
    prompts = [[5, 6, 7], [8, 9]]
    hot: dict[str, Any] = {"temperature": 1.5, "top_p": 0.95, "top_k": 100, "max_new_tokens": 8}
    assert engine.generate(prompts, Sampling(seed=1, **hot)) == engine.generate(prompts, Sampling(seed=1, **hot))
    assert engine.generate(prompts, Sampling(seed=1, **hot)) != engine.generate(prompts, Sampling(seed=2, **hot))
    assert list(engine.stream([5, 6], Sampling(seed=1, **hot))) == list(engine.stream([5, 6], Sampling(seed=1, **hot)))
    assert list(engine.stream([5, 6], Sampling(seed=1, **hot))) != list(engine.stream([5, 6], Sampling(seed=2, **hot)))


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}])
def test_drawing_from_one_token_is_greedy(engine: OnnxEngine, narrow: dict[str, Any]) -> None:
    greedy = engine.generate([[5, 6, 7], [8, 9]], Sampling(max_new_tokens=6))
    assert engine.generate([[5, 6, 7], [8, 9]], Sampling(temperature=2.0, max_new_tokens=6, **narrow)) == greedy


def test_the_context_ends_an_answer_and_no_neighbour_shortens_another(engine: OnnxEngine) -> None:
    sampling = Sampling(max_new_tokens=20)
    prompts = [[5] * 1020, [6] * 10, [7] * 1021]
    answers = engine.generate(prompts, sampling)
    assert answers == [engine.generate([p], sampling)[0] for p in prompts] == [list(engine.stream(p, sampling)) for p in prompts]
    assert [len(a) for a in answers] == [4, 20, 3]
    assert engine.logits([5] * 1024).shape == (1024, 512)
    for ask in (
        lambda: engine.generate([[5] * 1024], sampling),
        lambda: list(engine.stream([5] * 1024, sampling)),
        lambda: engine.logits([5] * 1025),
    ):
        with pytest.raises(InputError, match="too many"):
            ask()


def test_a_folder_that_is_no_onnx_model_is_refused(tiny_llama: Path, tmp_path: Path, engine: OnnxEngine) -> None:
    with pytest.raises(InputError, match=r"no genai_config\.json.*tunery export"):
        OnnxEngine(tiny_llama)
    (tmp_path / "genai_config.json").write_text("{")
    with pytest.raises(InputError, match=r"genai_config\.json: cannot be read"):
        OnnxEngine(tmp_path)


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "onnxruntime_genai":
            raise ImportError("No module named 'onnxruntime_genai'")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'tunery\[onnx\]'"):
        onnx_engine.import_genai()
