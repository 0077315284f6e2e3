"""A model made of a file in another type does not keep the file's pages; one of the same type is made of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tunery.models import _mapped

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which pages are whose")

LOAD = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, LlamaConfig
from tunery.models.load import load_model
from tunery.machine import peak_memory
from tunery.models import _mapped
folder = Path(sys.argv[1])
if sys.argv[2] == "kept":
    _mapped._mapped = lambda files: ()
load_model(folder, "float32")  # what only the first load costs
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = peak_memory()
model = load_model(folder, "bfloat16")
print(peak_memory() - before, sum(p.numel() for p in model.parameters()))
"""


def test_pages_of_a_file_in_another_type_are_given_back(tmp_path: Path) -> None:
    from tiny import tiny_model

    folder = tiny_model(tmp_path, "llama", hidden_size=1024, intermediate_size=2048, num_hidden_layers=8)
    grown = {}
    for way in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", LOAD, str(folder), way], capture_output=True, text=True, check=True)
        grown[way], numbers = map(int, done.stdout.split())
    assert grown["kept"] > 5.5 * numbers  # four bytes of the file and two of the model
    assert grown["given back"] < 5 * numbers


def test_a_file_of_the_same_type_is_left_alone_and_values_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.ones(4), "b": torch.ones(4, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 20)
    asked: list[set[str]] = []

    def mapped(files: set[str]) -> tuple[tuple[int, int], ...]:
        asked.append(files)
        return ()

    monkeypatch.setattr(_mapped, "_mapped", mapped)
    for dtype in ("float32", "bfloat16"):
        with _mapped.given_back(tmp_path, dtype):
            pass
    assert not asked
    save_file({"a": torch.ones(4)}, tmp_path / "model.safetensors")
    with _mapped.given_back(tmp_path, "bfloat16"):
        while not asked:
            pass
    assert asked[0] == {str(tmp_path / "model.safetensors")}
