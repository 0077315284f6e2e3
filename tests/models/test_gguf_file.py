from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_gguf import tiny_gguf

from tunery.errors import InputError
from tunery.models import gguf_file
from tunery.models.load import load_model, load_tokenizer
from tunery.models.source import local_folder


def _logits(folder: Path, ids: list[int]):  # type: ignore[no-untyped-def]
    import torch

    with torch.no_grad():
        return load_model(folder)(torch.tensor([ids])).logits[0]


def test_float32_file_becomes_the_same_model(tiny_llama: Path, tmp_path: Path, own_cache: Path) -> None:
    import torch

    file = tiny_gguf(tiny_llama, tmp_path / "tiny.gguf")
    said: list[str] = []
    folder = local_folder(str(file), said.append)
    assert folder.is_relative_to(own_cache)
    assert any("converting tiny.gguf" in line for line in said)
    ids = load_tokenizer(tiny_llama)("The model answers the question.").input_ids
    assert load_tokenizer(folder)("The model answers the question.").input_ids == ids
    assert torch.allclose(_logits(folder, ids), _logits(tiny_llama, ids), atol=1e-5)
    assert load_tokenizer(folder).chat_template == load_tokenizer(tiny_llama).chat_template
    assert json.loads((folder / "source.json").read_text())["note"] == "dequantised F32"

    said.clear()
    assert local_folder(str(file), said.append) == folder
    assert said == [], "the second call takes the cached folder"


def test_quantised_file_is_close_and_says_so(tiny_llama: Path, tmp_path: Path, own_cache: Path) -> None:
    import torch

    folder = local_folder(str(tiny_gguf(tiny_llama, tmp_path / "tiny.gguf", quantisation="Q8_0")))
    ids = list(range(3, 40))
    difference = (_logits(folder, ids) - _logits(tiny_llama, ids)).abs().max()
    assert 0 < difference < 0.1 * _logits(tiny_llama, ids).abs().max()
    assert load_model(folder).dtype == torch.float32
    assert json.loads((folder / "source.json").read_text())["note"] == "dequantised Q8_0"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("pre", "expected"), [("smollm", ["\n\n", "1", "2"]), ("gpt2", ["\n", "\n", "12"])])
def test_digits_are_split_as_the_files_tokenizer_did(
    tiny_llama: Path, tmp_path: Path, own_cache: Path, pre: str, expected: list[str]
) -> None:
    folder = gguf_file.folder_of(tiny_gguf(tiny_llama, tmp_path / "tiny.gguf", pre_tokenizer=pre))
    pieces = load_tokenizer(folder).backend_tokenizer.pre_tokenizer.pre_tokenize_str("\n\n12")
    assert [piece.replace("Ċ", "\n") for piece, _ in pieces] == expected


def test_a_changed_file_is_a_new_entry(tiny_llama: Path, tmp_path: Path, own_cache: Path) -> None:
    file = tiny_gguf(tiny_llama, tmp_path / "tiny.gguf")
    first = local_folder(str(file))
    tiny_gguf(tiny_llama, file, quantisation="Q8_0")
    assert local_folder(str(file)) != first
    assert first.is_dir()


def test_two_processes_convert_once(tiny_llama: Path, tmp_path: Path, own_cache: Path) -> None:
    file = tiny_gguf(tiny_llama, tmp_path / "tiny.gguf")
    ask = "import sys; from tunery.models.source import local_folder; print(local_folder(sys.argv[1], lambda m: print('SAID', m)))"
    both = [subprocess.Popen([sys.executable, "-c", ask, str(file)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=300)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0][-1] == answers[1][-1], "both get the same folder"
    assert sum("converting" in line for answer in answers for line in answer) == 1
    assert (Path(answers[0][-1]) / "model.safetensors").is_file()
    assert [p.name for p in (own_cache / "models").iterdir() if p.is_dir()] == [Path(answers[0][-1]).name], "no half-made folder stays"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40])
def test_damaged_files_are_refused(content: bytes, tmp_path: Path, own_cache: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.gguf: .*download it again"):
        local_folder(str(file))
    assert not [p for p in own_cache.rglob("*") if p.suffix == ".safetensors"]


def test_cut_file_is_refused(tiny_llama: Path, tmp_path: Path, own_cache: Path) -> None:
    file = tiny_gguf(tiny_llama, tmp_path / "cut.gguf")
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(InputError, match="damaged or cut short"):
        local_folder(str(file))


def test_unknown_architecture_is_refused(tmp_path: Path, own_cache: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "no-such-architecture")
    writer.add_tensor("x", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"odd\.gguf: transformers cannot read this GGUF file \(.*no-such-architecture.*safetensors"):
        local_folder(str(tmp_path / "odd.gguf"))


@pytest.mark.real
def test_the_embedded_model(smollm2: Path) -> None:
    from tunery.models.load import context_length, count_parameters

    assert context_length(smollm2) == 8192
    model = load_model(smollm2, dtype="bfloat16")
    assert count_parameters(model) == 134_515_008
    tokenizer = load_tokenizer(smollm2)
    # SmolLM2's own tokenizer keeps the two line ends together before a digit, and splits every digit off.
    assert tokenizer.convert_ids_to_tokens(tokenizer("x\n\n12").input_ids) == ["x", "ĊĊ", "1", "2"]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
