"""The built wheel installs into an empty environment and runs there, away from the source tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, f"{command}:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    copy = out / "source"  # the build writes beside its sources
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    for file in sorted((ROOT / "src").rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts and not any(p.endswith(".egg-info") for p in file.parts):
            to = copy / file.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(file.read_bytes())
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_source_file(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        str(f.relative_to(ROOT / "src")) for f in (ROOT / "src" / "tunery").rglob("*") if f.is_file() and "__pycache__" not in f.parts
    }
    assert sources <= inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert not [name for name in inside if name.startswith("tests")]


@pytest.mark.real
def test_the_wheel_installs_into_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python, tunery = tmp_path / "env" / "bin" / "python", tmp_path / "env" / "bin" / "tunery"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt")
    _run(*pip, "setuptools", "wheel", cwd=tmp_path)  # for what comes as source only
    _run(*pip, "--no-build-isolation", wheel, cwd=tmp_path)
    assert "train" in _run(tunery, "--help", cwd=tmp_path)
    found = json.loads(_run(tunery, "doctor", "--json", cwd=tmp_path))
    assert found["torch"].startswith("2.13.0")
    assert found["extras"]["onnx"]["install"] == "pip install 'tunery[onnx]'", "the extras are left out until they are asked for"
    where = _run(python, "-c", "import tunery; print(tunery.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(tmp_path / "env")
