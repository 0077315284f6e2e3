"""The whole job with the methods whose base or files are not LoRA's: trained, measured, exported, proven, and gone on from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import write_job

from tunery import pipeline
from tunery.infer.open_engine import load_run
from tunery.models.load import load_model

IDS = torch.arange(3, 23)[None]
SHORT: dict[str, Any] = {"epochs": 1, "max_steps": 4, "learning_rate": 0.01}


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        ({"name": "qlora", "rank": 4, "dora": True}, "bf16"),
        ({"name": "lora", "rank": 4, "start": "pissa"}, "fp32"),
        ("full", "bf16"),
    ],
)
def test_what_is_exported_is_what_was_trained(method: Any, precision: str, tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    (tmp_path / "first").mkdir()
    exports = ["merged"] if method == "full" else ["adapter", "merged"]
    train = {**SHORT, "precision": precision}
    recipe = write_job(tmp_path / "first", tiny_llama, method=method, train=train, export=exports, evaluate={"forgetting_tokens": 0})
    result = pipeline.finetune(recipe, tmp_path / "run")
    assert result.report["status"] == "succeeded"
    assert result.report["evaluation"]["after"] != result.report["evaluation"]["before"]
    for name in exports:
        entry = result.report["exports"][name]
        assert entry["greedy_match"] == 1.0
        assert entry["max_logit_difference"] < 1e-3
    # In float32 the run is the merged folder, not the base: with QLoRA, what its four bits of the bfloat16 weights stand for.
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged")
    with torch.no_grad():
        trained = load_run(result.run, dtype="float32")[0](input_ids=IDS).logits
        torch.testing.assert_close(merged(input_ids=IDS).logits, trained, atol=1e-4, rtol=1e-4)
        assert (trained - load_model(tiny_llama)(input_ids=IDS).logits).abs().max() > 0.01
    assert load_run(result.run)[0](input_ids=IDS).logits.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]

    (tmp_path / "second").mkdir()
    further = write_job(
        tmp_path / "second",
        tiny_llama,
        method=method,
        train={**train, "init_from": str(tmp_path / "run")},
        export=["merged"],
        evaluate={"forgetting_tokens": 0},
    )
    again = pipeline.finetune(further, tmp_path / "further")
    first, second = (json.loads((tmp_path / r / "metrics.jsonl").read_text().splitlines()[0])["loss"] for r in ("run", "further"))
    assert again.report["status"] == "succeeded"
    assert second < first - 0.1  # it begins where the other ended


@pytest.mark.parametrize("method", ["p_tuning", "prefix", "adalora", "vera"])
def test_a_finished_run_is_gone_on_from_whatever_its_method(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    """By name of the run, whose adapter was exported in place: what training alone reads is still there."""
    runs = []
    for name, more in (("first", {}), ("second", {"init_from": str(tmp_path / "first")})):
        (tmp_path / f"job-{name}").mkdir()
        job = write_job(tmp_path / f"job-{name}", tiny_llama, method=method, train={**SHORT, "precision": "fp32", **more})
        job.write_text(job.read_text().replace("  test: test.jsonl\n", ""))
        runs.append(pipeline.finetune(job, tmp_path / name))
    (first, second), files = runs, [{p.name for p in run.run.adapter.iterdir()} for run in runs]
    assert files[0] == files[1]
    assert "proof.json" in files[0]
    assert second.run.metrics()[0]["loss"] < first.run.metrics()[0]["loss"] - 0.01
