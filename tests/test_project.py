"""The project files agree with each other: what is required is pinned, and the contract's make targets exist."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tunery import __version__
from tunery.models.catalogue import CATALOGUE

ROOT = Path(__file__).parents[1]


def _pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    assert all(re.fullmatch(r"==[\w.]+", str(p.specifier)) for p in pins), "exact versions, without a local tag"
    return {canonicalize_name(p.name): Version(str(p.specifier)[2:]) for p in pins}


def test_every_requirement_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = list(project["project"]["dependencies"]) + project["build-system"]["requires"]
    for extra in project["project"]["optional-dependencies"].values():
        requirements += extra
    pins = _pins()
    for requirement in (Requirement(r) for r in requirements):
        if requirement.name != "tunery":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_what_the_pins_need_is_pinned_too() -> None:
    """Everything that a pinned package asks for, here and now, is pinned as well: nothing unpinned gets installed."""
    from importlib.metadata import PackageNotFoundError, requires

    pins = _pins()
    only_weights = {canonicalize_name(e.package) for e in CATALOGUE.values() if e.package}
    for name in set(pins) - only_weights:
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            raise AssertionError(f"{name} is pinned and not installed: does anything need it?") from None
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert canonicalize_name(need.name) in pins, f"{name} needs {need.name}, which is not pinned"


def test_every_extra_that_a_message_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        name
        for file in (ROOT / "src").rglob("*.py")
        for names in re.findall(r"tunery\[([\w,-]+)\]", file.read_text())
        for name in names.split(",")
    }
    assert {"onnx", "track", "qlora"} <= named <= set(extras)


def test_the_pins_the_contract_names() -> None:
    pins = _pins()
    assert pins["torch"] == Version("2.13.0")
    for entry in CATALOGUE.values():
        if entry.package:
            assert pins[canonicalize_name(entry.package)] == Version(str(entry.package_version))


def test_one_version() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_make_targets_and_the_check_that_runs_on_every_change() -> None:
    for target in ("setup", "quickstart", "test", "bench"):
        shown = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[-1] == "exec make test"


def test_an_old_python_is_refused_with_a_reason(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nexec python3 -c "import sys; sys.version_info = (3, 9, 1, \'final\', 0); exec(sys.argv[1])" "$2"\n')
    fake.chmod(0o755)
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / file).write_text((ROOT / file).read_text())
    result = subprocess.run(["make", "setup", f"PYTHON={fake}"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stderr
    assert "is 3.9" in result.stderr
    assert not (tmp_path / ".venv").exists()
