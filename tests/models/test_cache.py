from __future__ import annotations

from pathlib import Path

import pytest

from tunery.models.cache import build_once, cache_folder


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNERY_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("TUNERY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tunery"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "tunery"


def test_built_once(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "a").write_text("x")

    for _ in range(2):
        assert (build_once(tmp_path / "m" / "x", build) / "a").read_text() == "x"
    assert len(built) == 1


def test_a_failed_build_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        build_once(tmp_path / "x", fail)
    assert not (tmp_path / "x").exists()
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []
    assert list(build_once(tmp_path / "x", lambda folder: None).iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".x.stale").mkdir()
    (tmp_path / ".x.stale" / "half").write_text("x")
    build_once(tmp_path / "x", lambda folder: None)
    assert not (tmp_path / ".x.stale").exists()
