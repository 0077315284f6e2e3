"""Every export of the real model with an adapter on it, at DESIGN's full 50 prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunery.errors import ProofError
from tunery.export import merged, onnx
from tunery.export.source import ExportSource
from tunery.infer.onnx_engine import OnnxEngine
from tunery.infer.sampling import Sampling
from tunery.models.load import load_model

pytestmark = pytest.mark.real


def test_merged(real: ExportSource, tmp_path: Path) -> None:
    entry = merged.export(real, tmp_path / "merged", merged.Options())
    assert entry["greedy_match"] >= 0.999
    assert entry["max_logit_difference"] < 0.01  # logits reach 40; float32 leaves about 2e-4


def test_a_merge_that_lost_the_adapter_is_not_kept(real: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged, "merge", lambda source: load_model(source.base_folder))
    with pytest.raises(ProofError, match=r"greedy_match 0\.\d+ is below 0\.999"):
        merged.export(real, tmp_path / "merged", merged.Options())
    assert list(tmp_path.iterdir()) == []


# int4: measured 0.781, 19.4 as the largest difference. int8, left out for its time: 0.959, 2.4 and 275 MB.
@pytest.mark.parametrize(("precision", "match", "megabytes"), [("fp32", 0.999, 560), ("int4", 0.7, 125)])
def test_onnx(real: ExportSource, tmp_path: Path, precision: str, match: float, megabytes: int) -> None:
    pytest.importorskip("onnxruntime_genai", reason="pip install 'tunery[onnx]'")
    entry = onnx.export(real, tmp_path / "onnx", onnx.Options(precision=precision))  # type: ignore[arg-type]
    assert match <= entry["greedy_match"] <= 1.0
    assert entry["bytes"] < megabytes * 1e6
    assert entry["genai_tokenizer"] is True
    if precision == "fp32":
        assert entry["max_logit_difference"] < 0.01
        answer = OnnxEngine(tmp_path / "onnx").generate(real.prompts[:2], Sampling(max_new_tokens=32))
        for found, expected in zip(answer, real.reference.continuations, strict=False):
            assert found == expected[: len(found)]
            assert len(found) == 32 or expected[len(found)] in real.stop_ids
