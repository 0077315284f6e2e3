from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tunery.errors import InputError, ProofError, RunError
from tunery.export import adapter
from tunery.export.source import ExportSource
from tunery.models.load import load_tokenizer

NONE = adapter.Options()


def test_peft_computes_with_the_export_what_our_training_code_computes(trained: ExportSource, tmp_path: Path) -> None:
    entry = adapter.export(trained, tmp_path / "adapter", NONE)
    assert entry["greedy_match"] == 1.0
    assert entry["max_logit_difference"] < 1e-4
    assert entry["precision"] == "fp32"
    assert entry["bytes"] > 1000
    assert json.loads((tmp_path / "adapter" / "proof.json").read_text()) == entry
    assert load_tokenizer(tmp_path / "adapter").chat_template == load_tokenizer(trained.base_folder).chat_template


def test_the_runs_own_adapter_folder_is_proven_in_place(llama: ExportSource, tmp_path: Path) -> None:
    assert llama.adapter is not None
    own = tmp_path / "adapter"
    own.mkdir()
    for name in adapter.FILES:
        (own / name).write_bytes((llama.adapter / name).read_bytes())
    source = replace(llama, adapter=own)
    source.__dict__["reference"] = llama.reference
    adapter.export(source, own, NONE)
    assert (own / "proof.json").is_file()
    assert (own / "tokenizer.json").is_file()


def _altered(source: ExportSource, folder: Path, scale: float) -> ExportSource:
    """The same trained model, with another adapter file than it was trained to."""
    assert source.adapter is not None
    folder.mkdir()
    tensors = load_file(source.adapter / "adapter_model.safetensors")
    save_file({n: t * scale if "lora_B" in n else t for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text((source.adapter / "adapter_config.json").read_text())
    altered = replace(source, adapter=folder)
    altered.__dict__["reference"] = source.reference
    return altered


@pytest.mark.parametrize("scale", [0.0, -1.0, 2.0])
def test_an_adapter_that_is_not_the_trained_one_is_not_kept(llama: ExportSource, tmp_path: Path, scale: float) -> None:
    source = _altered(llama, tmp_path / "wrong", scale)
    (tmp_path / "out").mkdir()
    with pytest.raises(ProofError, match=r"adapter: .*greedy_match 0\.\d+ is below 0\.999"):
        adapter.export(source, tmp_path / "out" / "adapter", NONE)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_adapter_is_named(llama: ExportSource, tmp_path: Path) -> None:
    source = _altered(llama, tmp_path / "wrong", 1.0)
    (tmp_path / "wrong" / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunError, match="PEFT cannot load this adapter"):
        adapter.export(source, tmp_path / "out", NONE)
    (tmp_path / "wrong" / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"adapter_config\.json is missing"):
        adapter.export(source, tmp_path / "out", NONE)


def test_a_bare_model_has_none(llama: ExportSource, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no adapter to export"):
        adapter.export(replace(llama, adapter=None), tmp_path / "out", NONE)
