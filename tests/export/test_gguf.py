"""GGUF files by llama.cpp's own converter, read back by transformers and run by llama.cpp itself.

The small models have SmolLM2's tokenizer: the converter takes only tokenizers that it knows.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exports import random_adapter, source_of
from tiny import tiny_config

from tunery import card
from tunery.errors import InputError, MissingExtraError, ProofError, RunError
from tunery.export import gguf, llama_cpp, llama_cpp_server
from tunery.export.source import ExportSource
from tunery.models.load import load_tokenizer


def _model(folder: Path, architecture: str, smollm2: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, vocab_size=49_152), dtype=torch.float32)
    model.save_pretrained(folder)
    load_tokenizer(smollm2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def here() -> None:
    """The converter and what it needs."""
    if llama_cpp.converter() is None:
        pytest.skip(f"llama.cpp's converter is not here; fetch it with `{llama_cpp.FETCH}`")
    pytest.importorskip("sentencepiece", reason="pip install 'tunery[gguf]'")
    pytest.importorskip("xllamacpp", reason="pip install 'tunery[gguf]'")


@pytest.fixture(scope="session")
def small(here: None, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    folder = _model(tmp_path_factory.mktemp("gguf") / "llama", "llama", smollm2)
    return source_of(folder, random_adapter(folder, tmp_path_factory.mktemp("adapter"), std=0.2), count=5)


def test_a_float32_file_is_the_trained_model_for_transformers_and_for_llama_cpp(small: ExportSource, tmp_path: Path) -> None:
    entry = gguf.export(small, tmp_path / "gguf", gguf.Options(precision="fp32"))
    assert entry["greedy_match"] == 1.0
    assert entry["max_logit_difference"] < 1e-4
    assert entry["llama_cpp"]["greedy_match"] >= 1 - 1.5 / 160
    assert entry["llama_cpp"]["tokenizer"] is True
    assert entry["llama_cpp"]["prompts"] == 5
    assert sorted(f.name for f in (tmp_path / "gguf").iterdir()) == ["model-fp32.gguf", "proof.json"]
    assert json.loads((tmp_path / "gguf" / "proof.json").read_text()) == entry
    assert [p.name for p in tmp_path.iterdir()] == ["gguf"], "nothing else stays"


def test_an_eight_bit_file_has_figures_of_its_own(small: ExportSource, tmp_path: Path) -> None:
    asked = []

    def held_out(engine: Any) -> dict[str, Any]:
        asked.append(engine.name)
        return {"metric": "accuracy", "value": 0.8, "low": 0.7, "high": 0.9, "export_value": 0.75, "kept": True}

    measured = replace(small, held_out=held_out)
    measured.__dict__["reference"] = small.reference
    entry = gguf.export(measured, tmp_path / "gguf", gguf.Options(precision="q8_0"))
    assert 0.9 < entry["greedy_match"] <= 1.0
    assert 1e-4 < entry["max_logit_difference"] < 1.0
    assert entry["bytes"] < 6_000_000, "3.2 million parameters at 8.5 bits, and the tokenizer"
    assert entry["held_out"]["export_value"] == 0.75
    assert len(asked) == 1


@pytest.mark.parametrize(("architecture", "precision"), [("phi3", "fp16"), pytest.param("qwen3", "bf16", marks=pytest.mark.real)])
def test_other_architectures(architecture: str, precision: Any, here: None, smollm2: Path, tmp_path: Path) -> None:
    folder = _model(tmp_path / architecture, architecture, smollm2)
    if architecture == "phi3":  # as Phi-4 says it: the same layers with a byte-level tokenizer
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": "GPT2Tokenizer"}))
    source = source_of(folder, random_adapter(folder, tmp_path / "adapter", std=0.2), count=3)
    entry = gguf.export(source, tmp_path / "gguf", gguf.Options(precision=precision))
    assert entry["greedy_match"] > 0.95
    assert entry["llama_cpp"]["greedy_match"] > 0.9


@pytest.mark.real
def test_without_llama_cpp_itself_transformers_reads_everything(
    small: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llama_cpp, "has_runtime", lambda: False)
    entry = gguf.export(small, tmp_path / "gguf", gguf.Options(precision="fp16"))
    assert "llama_cpp" not in entry
    assert entry["greedy_match"] > 0.95
    report = {"model": "smollm2-135m", "method": "lora", "task": "chat", "status": "succeeded"}
    text = card.write_into(tmp_path / "gguf", report, "gguf", entry).read_text()
    assert "| gguf | fp16 |" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path / "gguf")
    capsys.readouterr()
    exec(compile(code.replace("max_new_tokens=100", "max_new_tokens=8"), "card", "exec"), {})
    assert capsys.readouterr().out.strip(), "the card's code answers"


@pytest.fixture(scope="session")
def whole(here: None, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    """The real model, with fewer prompts than a run has."""
    return source_of(smollm2, random_adapter(smollm2, tmp_path_factory.mktemp("adapter"), std=0.02), count=8)


@pytest.mark.real
def test_the_real_model(whole: ExportSource, tmp_path: Path) -> None:
    entry = gguf.export(whole, tmp_path / "gguf", gguf.Options())
    assert entry["precision"] == "fp16"
    assert entry["greedy_match"] > 0.98
    assert entry["llama_cpp"]["tokenizer"] is True
    assert entry["llama_cpp"]["greedy_match"] > 0.98


@pytest.mark.real
def test_four_bits_by_llama_quantize(whole: ExportSource, tmp_path: Path) -> None:
    if llama_cpp.quantizer() is None:
        pytest.skip("llama-quantize is not here: build llama.cpp and put it on PATH")
    entry = gguf.export(whole, tmp_path / "gguf", gguf.Options(precision="q4_k_m"))
    assert sorted(f.name for f in (tmp_path / "gguf").iterdir()) == ["model-q4_k_m.gguf", "proof.json"]
    assert entry["bytes"] < 120_000_000
    assert entry["greedy_match"] > 0.6
    assert entry["llama_cpp"]["tokenizer"] is True


def test_weights_that_are_not_the_merged_ones_are_not_kept(small: ExportSource) -> None:
    import torch

    from tunery.models.load import load_model

    model, read = load_model(small.base_folder), load_model(small.base_folder)
    gguf.require_rounding(model, read, "float32", "gguf")
    read.half().float()
    gguf.require_rounding(model, read, "float16", "gguf")
    with pytest.raises(ProofError, match=r"embed_tokens\.weight in the file is not the merged one"):
        gguf.require_rounding(model, read, "bfloat16", "gguf")
    with torch.no_grad():
        read.model.norm.weight[3] += 0.01
    with pytest.raises(ProofError, match="is not the merged one"):
        gguf.require_rounding(model, read, "float16", "gguf")


def test_llama_cpp_notices_other_tokens_and_other_answers(small: ExportSource, tmp_path: Path) -> None:
    """What the checks by llama.cpp itself are there for: each fails when its part of the file is not the trained model's."""
    file = tmp_path / "model-fp32.gguf"
    gguf.convert(small.base_folder, file, "fp32", tmp_path / "log")  # the base, without what was learned
    with llama_cpp_server.serving(file, 700) as server:
        assert llama_cpp_server.reproduces(server, small.probes)
        assert not llama_cpp_server.reproduces(server, [{**small.probes[0], "ids": [*small.probes[0]["ids"], 5]}])
        match = llama_cpp_server.greedy_match(server, small.reference, small.stop_ids, small.progress)
        assert match < 0.9, "the untrained base gives other answers"
        own = replace(small, adapter=None, trained=None)
        assert llama_cpp_server.greedy_match(server, own.reference, own.stop_ids, own.progress) > 0.99
    with pytest.raises(RunError, match=r"llama\.cpp cannot load"), llama_cpp_server.serving(tmp_path / "absent.gguf", 64):
        pass


def test_a_head_is_refused(here: None, tiny_llama: Path, tmp_path: Path) -> None:
    from tunery.models.heads import Head

    source = replace(source_of(tiny_llama, None, count=1), head=Head("sequence", ("a", "b")))
    with pytest.raises(InputError, match=r"a model with a head has no GGUF export: .*; choose onnx"):
        gguf.export(source, tmp_path / "gguf", gguf.Options())
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_the_converter_does_not_know(here: None, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"converter could not make fp16 of this model: .*(BPE pre-tokenizer|get_vocab_base_pre).*log"):
        gguf.export(source_of(tiny_llama, None, count=1), tmp_path / "gguf", gguf.Options())
    assert [p.name for p in tmp_path.iterdir()] == ["gguf.convert.log"]


@pytest.fixture
def nothing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without anything of llama.cpp's."""
    monkeypatch.delenv(llama_cpp.FOLDER, raising=False)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))


def test_what_is_missing_is_said_before_training(nothing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingExtraError, match=r"fetch it \(77 MB, once\) with `python -m tunery\.export\.llama_cpp`"):
        gguf.require()
    monkeypatch.setenv(llama_cpp.FOLDER, str(tmp_path))
    with pytest.raises(InputError, match=r"there is no convert_hf_to_gguf\.py in this folder"):
        gguf.require()
    (tmp_path / llama_cpp.SCRIPT).touch()
    pytest.importorskip("sentencepiece")
    gguf.require()
    assert llama_cpp.converter() == tmp_path / llama_cpp.SCRIPT
    gguf.require(gguf.Options(precision="q8_0"))
    with pytest.raises(MissingExtraError, match=r"q4_k_m needs llama\.cpp's llama-quantize"):
        gguf.require(gguf.Options(precision="q4_k_m"))
    (tmp_path / "build" / "bin").mkdir(parents=True)
    (tmp_path / "build" / "bin" / "llama-quantize").touch(0o755)
    gguf.require(gguf.Options(precision="q4_k_m"))


BACKEND = """
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    import os
    name = "llama_cpp_python-0.3.36.dist-info"
    os.makedirs(os.path.join(folder, name))
    open(os.path.join(folder, name, "METADATA"), "w").write("Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: 0.3.36\\n")
    return name
def build_wheel(*a, **k): raise SystemExit("nothing is built")
"""


@pytest.fixture
def index(nothing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its index, with a source package of the same name and form."""
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "PKG-INFO": "Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 0.3.36\n",
        "backend.py": BACKEND,
        "vendor/llama.cpp/convert_hf_to_gguf.py": "print('converted')\n",
        "vendor/llama.cpp/conversion/llama.py": "",
        "vendor/llama.cpp/gguf-py/gguf/__init__.py": "",
        "vendor/llama.cpp/src/llama.cpp": "int main() {}",
    }
    folder = tmp_path / "index"
    folder.mkdir()
    archive = folder / "llama_cpp_python-0.3.36.tar.gz"
    with tarfile.open(archive, "w:gz") as package:
        for name, text in files.items():
            member = tarfile.TarInfo(f"llama_cpp_python-0.3.36/{name}")
            member.size = len(text)
            package.addfile(member, io.BytesIO(text.encode()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return archive


def test_the_converter_is_fetched_by_pip_at_its_hash(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"pip could not fetch llama-cpp-python 0\.3\.36 \(ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"):
        llama_cpp.fetch()
    assert llama_cpp.converter() is None
    from tunery.run import sha256_of

    monkeypatch.setattr(llama_cpp, "SHA256", sha256_of(index))
    said: list[str] = []
    folder = llama_cpp.fetch(said.append)
    assert said == ["fetching llama-cpp-python 0.3.36 (77 MB) for llama.cpp's converter, once"]
    assert llama_cpp.converter() == folder / llama_cpp.SCRIPT
    found = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    assert found == ["conversion/llama.py", "convert_hf_to_gguf.py", "gguf-py/gguf/__init__.py"]
    os.remove(index)
    assert llama_cpp.fetch() == folder, "what is there is not fetched again"
