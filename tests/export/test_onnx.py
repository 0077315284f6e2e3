from __future__ import annotations

import importlib.util
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import in_type, random_adapter, source_of, stopping
from tiny import tiny_model

from tunery.errors import MissingExtraError, ProofError, RunError
from tunery.export import onnx
from tunery.export.source import ExportSource
from tunery.infer.onnx_engine import OnnxEngine
from tunery.infer.sampling import Sampling
from tunery.infer.torch_engine import TorchEngine
from tunery.models.load import load_model, load_tokenizer

pytest.importorskip("onnxruntime_genai", reason="pip install 'tunery[onnx]'")


def test_onnx_runtime_is_the_trained_model_and_stops_by_itself(trained: ExportSource, tmp_path: Path) -> None:
    assert trained.trained is not None
    torch_engine = TorchEngine(trained.trained(), load_tokenizer(trained.base_folder), ())
    rng = random.Random(0)
    prompts = [
        *trained.prompts[:6],
        *([rng.randrange(3, 440) for _ in range(rng.randint(1, 60))] for _ in range(6)),
        [9, 2],
        [2],
        [9, 2, 2],
    ]
    asked, answer, stop = stopping(trained)
    prompts = [asked, *prompts]
    source = replace(trained, stop_ids=(stop, 2))
    source.__dict__["reference"] = trained.reference
    folder = tmp_path / "onnx"
    entry = onnx.export(source, folder, onnx.Options())

    assert entry["greedy_match"] >= 0.999
    assert entry["max_logit_difference"] < 1e-4
    assert entry["precision"] == "fp32"
    assert entry["genai_tokenizer"] is True
    assert sorted(p.name for p in tmp_path.iterdir()) == ["onnx"]  # neither the merged model nor a log is left

    engine = OnnxEngine(folder)
    assert engine.stop_ids == (stop, 2)
    assert engine.context == 1024
    np.testing.assert_allclose(engine.logits(prompts[0]), torch_engine.logits(prompts[0]), atol=1e-4)
    torch_engine.stop_ids = engine.stop_ids
    sampling = Sampling(max_new_tokens=12)
    expected = torch_engine.generate(prompts, sampling)
    assert engine.generate(prompts, sampling) == expected  # in a batch, padded; three prompts end with the pad token
    assert [engine.generate([p], sampling)[0] for p in prompts] == expected
    assert [list(engine.stream(p, sampling)) for p in prompts] == expected
    assert expected[0] == answer[: answer.index(stop)][:12]
    assert _by_genai_alone(engine, prompts[0]) == answer[: answer.index(stop) + 1]


def test_a_bare_16_bit_model_is_computed_in_float32_and_gets_the_stop_tokens_too(llama: ExportSource, tmp_path: Path) -> None:
    bare = source_of(in_type(llama.base_folder, tmp_path / "base", "bfloat16"), None, count=10)
    entry = onnx.export(replace(bare, stop_ids=(11, 2)), tmp_path / "onnx", onnx.Options())
    assert entry["greedy_match"] == 1.0
    assert entry["max_logit_difference"] < 1e-4
    assert OnnxEngine(tmp_path / "onnx").stop_ids == (11, 2)


def _by_genai_alone(engine: OnnxEngine, prompt: list[int]) -> list[int]:
    """What a program that knows onnxruntime-genai and nothing of Tunery generates."""
    import onnxruntime_genai as og

    params = og.GeneratorParams(engine.model)
    params.set_search_options(max_length=len(prompt) + 40)
    generator = og.Generator(engine.model, params)
    generator.append_tokens(prompt)
    found = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    return found


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    """A Llama whose layers are whole blocks of 32 × 2 values, as the builder's 4-bit rounding needs them."""
    folder = tmp_path_factory.mktemp("wide")
    base = tiny_model(folder / "base", "llama", intermediate_size=192)
    return source_of(base, random_adapter(base, folder / "trained", std=0.2), count=20)


@pytest.mark.parametrize(("precision", "low", "high"), [("int8", 0.8, 0.1), ("int4", 0.2, 1.5)])
def test_a_quantised_export_reports_how_far_it_is(
    wide: ExportSource, tmp_path: Path, precision: str, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder of the user's that is called like a library must not be imported for it.
    (tmp_path / "here" / "onnx").mkdir(parents=True)
    (tmp_path / "here" / "onnx" / "__init__.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path / "here")
    asked: list[Any] = []

    def measure(engine: Any) -> dict[str, Any]:
        asked.append(engine.name)
        return {"metric": "accuracy", "value": 0.8, "low": 0.7, "high": 0.9, "export_value": 0.75, "kept": True}

    entry = onnx.export(replace(wide, held_out=measure), tmp_path / "onnx", onnx.Options(precision=precision))  # type: ignore[arg-type]
    assert entry["precision"] == precision
    assert low < entry["greedy_match"] <= 1.0
    assert 1e-3 < entry["max_logit_difference"] < high
    assert asked == ["onnx"]
    assert entry["held_out"]["export_value"] == 0.75
    assert json.loads((tmp_path / "onnx" / "proof.json").read_text()) == entry


def test_a_quantised_export_that_lost_the_metric_is_not_kept(wide: ExportSource, tmp_path: Path) -> None:
    lost = {"metric": "accuracy", "value": 0.8, "low": 0.7, "high": 0.9, "export_value": 0.6, "kept": False}
    with pytest.raises(ProofError, match=r"onnx int8 \(greedy_match 0\.\d+\): accuracy on the test rows is 0\.6000, outside"):
        onnx.export(replace(wide, held_out=lambda _: lost), tmp_path / "onnx", onnx.Options(precision="int8"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_an_export_without_the_adapter_is_not_kept(
    llama: ExportSource, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "merge", lambda source: load_model(source.base_folder))
    with pytest.raises(ProofError, match=r"greedy_match 0\.\d+ is below 0\.999"):
        onnx.export(llama, tmp_path / "onnx", onnx.Options(precision=precision))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_what_the_builder_cannot_export_is_said_in_its_words(llama: ExportSource, tmp_path: Path) -> None:
    base = shutil.copytree(llama.base_folder, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["UnheardOfForCausalLM"]}))
    bare = source_of(base, None, count=2)
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match=r"could not export this model in fp32: .*not currently supported.*onnx\.build\.log"):
        onnx.export(bare, tmp_path / "out" / "onnx", onnx.Options())
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["onnx.build.log"]
    assert "Traceback" in (tmp_path / "out" / "onnx.build.log").read_text()


def test_without_the_extra_the_error_says_what_to_install(llama: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnx_ir" else known(name, *more))
    with pytest.raises(MissingExtraError, match=r"onnx_ir.*pip install 'tunery\[onnx\]'"):
        onnx.export(llama, tmp_path / "onnx", onnx.Options())


def test_a_stop_token_is_added_to_those_that_the_model_has(tmp_path: Path) -> None:
    file = tmp_path / "genai_config.json"
    for own, expected in ((2, [7, 2]), ([2, 7], [7, 2]), (7, 7), (None, 7)):
        file.write_text(json.dumps({"model": {"eos_token_id": own, "pad_token_id": 0}}))
        onnx.state_stop_ids(tmp_path, (7,))
        assert json.loads(file.read_text())["model"]["eos_token_id"] == expected
