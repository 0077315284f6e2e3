from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exports import in_type, random_adapter, source_of, stopping
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from tunery.errors import InputError, ProofError
from tunery.export import merged
from tunery.export.source import ExportSource
from tunery.models.load import load_model, load_tokenizer

NONE = merged.Options()


def load_as_a_user(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def test_the_merged_folder_is_the_trained_model(trained: ExportSource, tmp_path: Path) -> None:
    entry = merged.export(trained, tmp_path / "merged", NONE)
    assert entry["greedy_match"] == 1.0
    assert entry["max_logit_difference"] < 1e-4
    assert entry["precision"] == "fp32"
    folder = tmp_path / "merged"
    assert json.loads((folder / "proof.json").read_text()) == entry
    model = load_as_a_user(folder)
    assert model.config.tie_word_embeddings == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert not list(folder.glob("*.bin"))
    assert not any("lora" in name for file in folder.glob("*.safetensors") for name in load_file(file))
    assert load_tokenizer(folder).chat_template == load_tokenizer(trained.base_folder).chat_template


def test_tied_embeddings_are_stored_once(llama: ExportSource, tmp_path: Path) -> None:
    merged.export(llama, tmp_path / "merged", NONE)
    names = load_file(tmp_path / "merged" / "model.safetensors").keys()
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


@pytest.mark.parametrize(("dtype", "short"), [("bfloat16", "bf16"), ("float16", "fp16")])
def test_a_16_bit_base_gives_16_bit_files_that_are_the_rounded_float32_merge(
    tiny_llama: Path, tmp_path: Path, dtype: str, short: str
) -> None:
    import torch

    base = in_type(tiny_llama, tmp_path / "base", dtype)
    source = source_of(base, random_adapter(base, tmp_path / "trained", std=0.2), count=10)
    entry = merged.export(source, tmp_path / "merged", NONE)
    assert entry["precision"] == short
    assert entry["float32"]["greedy_match"] == 1.0
    assert entry["float32"]["max_logit_difference"] < 1e-4
    # The figures of the files themselves are those of rounding: clearly not zero, clearly the same model.
    assert 1e-4 < entry["max_logit_difference"] < 1.0
    assert entry["greedy_match"] > 0.7
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    exact = merged.merge(source).state_dict()
    assert {t.dtype for t in stored.values()} == {getattr(torch, dtype)}
    assert all(torch.equal(t, exact[n].to(t.dtype)) for n, t in stored.items())
    assert load_as_a_user(tmp_path / "merged").dtype == getattr(torch, dtype)


def test_a_plain_generate_stops_by_itself(llama: ExportSource, tmp_path: Path) -> None:
    import torch

    prompt, answer, stop = stopping(llama)
    merged.export(replace(llama, stop_ids=(stop, 2), trained=None), tmp_path / "merged", NONE)
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"] == [stop, 2]
    out = load_as_a_user(tmp_path / "merged").generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0].tolist()
    assert out == prompt + answer[: answer.index(stop) + 1]


def test_a_bare_model_is_written_as_it_is(llama: ExportSource, tmp_path: Path) -> None:
    bare = source_of(llama.base_folder, None, count=5)
    assert merged.export(bare, tmp_path / "merged", NONE)["max_logit_difference"] == 0.0


@pytest.fixture(params=["float32", "bfloat16"])
def faulty(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path: Path) -> ExportSource:
    base = tiny_llama if request.param == "float32" else in_type(tiny_llama, tmp_path / "base", request.param)
    return source_of(base, random_adapter(base, tmp_path / "trained", std=0.2), count=5)


def test_a_merge_that_lost_the_adapter_is_not_kept(faulty: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged, "merge", lambda source: load_model(source.base_folder))
    (tmp_path / "out").mkdir()
    with pytest.raises(ProofError, match=r"greedy_match 0\.\d+ is below 0\.999, max_logit_difference \d"):
        merged.export(faulty, tmp_path / "out" / "merged", NONE)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tensor_that_changed_on_its_way_to_the_disk_is_not_kept(
    faulty: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = merged.save

    def save(model: Any, source: Any, folder: Path, dtype: str) -> None:
        honest(model, source, folder, dtype)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][3] += 0.01
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(merged, "save", save)
    (tmp_path / "out").mkdir()
    with pytest.raises(ProofError, match=r"model\.norm\.weight was not saved as it is"):
        merged.export(faulty, tmp_path / "out" / "merged", NONE)
    assert list((tmp_path / "out").iterdir()) == []


def test_another_template_in_the_folder_is_not_kept(llama: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = merged.save

    def save(model: Any, source: Any, folder: Path, dtype: str) -> None:
        honest(model, source, folder, dtype)
        file = folder / "chat_template.jinja"
        file.write_text(file.read_text().replace("helpful", "clever"))

    monkeypatch.setattr(merged, "save", save)
    with pytest.raises(ProofError, match="tokenizer and template give other ids"):
        merged.export(llama, tmp_path / "merged", NONE)
    assert list(tmp_path.iterdir()) == []


def test_nobodys_files_are_overwritten_but_an_earlier_export_is(llama: ExportSource, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("two years of work")
    for occupied in (tmp_path / "mine", llama.base_folder, tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(InputError, match="something else here already"):
            merged.export(llama, occupied, NONE)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "two years of work"
    (tmp_path / "empty").mkdir()
    merged.export(llama, tmp_path / "empty", NONE)
    first = (tmp_path / "empty" / "proof.json").stat().st_ino
    merged.export(llama, tmp_path / "empty", NONE)
    assert (tmp_path / "empty" / "proof.json").stat().st_ino != first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "mine"]


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no float weights in safetensors"):
        merged.stored_type(tmp_path)
    folder = tiny_model(tmp_path / "model", "phi3")
    assert merged.stored_type(folder) == "float32"
