"""A model made of a file in another type does not keep the file's pages; one of the same type is made of them."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tunery.models import _mapped
from tunery.models.load import load_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which pages are whose")

LOAD = """
import sys, torch
from pathlib import Path
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


def test_values_are_right_and_what_another_model_of_the_file_learned_stays(tiny_llama: Path) -> None:
    """The other one's weights are pages of the same file, written to in place."""
    trained = load_model(tiny_llama, "float32")
    with torch.no_grad():
        for p in trained.parameters():
            p += 1
    loaded, again = load_model(tiny_llama, "bfloat16"), load_model(tiny_llama, "float32")
    for own, low, plain in zip(trained.parameters(), loaded.parameters(), again.parameters(), strict=True):
        assert torch.equal(low, plain.bfloat16())
        assert torch.equal(own, plain + 1)


def test_what_was_mapped_before_is_not_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1 << 20)}, file)
    size = file.stat().st_size
    with file.open("rb") as f:
        before = mmap.mmap(f.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        before[-4:] = b"kept"
        monkeypatch.setattr(_mapped, "PAUSE", 0.001)
        with _mapped.given_back(tmp_path, "bfloat16"):
            own = mmap.mmap(f.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            own[-4:] = b"gone"
            for _ in range(1000):
                if own[-4:] != b"gone":
                    break
                time.sleep(0.01)
        assert own[-4:] == bytes(4)  # so pages were given back, which forgets what was written
        assert before[-4:] == b"kept"


def test_a_file_of_the_same_type_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        pass
    assert asked[0] == {str(tmp_path / "model.safetensors")}
