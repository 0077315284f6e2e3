from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from tunery.models import hashes
from tunery.models.hashes import cached_sha256, fingerprint


def test_fingerprint_covers_what_decides_an_answer(tiny_llama: Path, tmp_path: Path, own_cache: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_llama, folder)
    before = fingerprint(folder)
    names = {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "generation_config.json"}
    assert set(before) == names
    assert before["model.safetensors"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        after = fingerprint(folder)
        assert {n for n in names if after[n] != before[n]} == {name}
        before = after
    (folder / "README.md").write_text("does not count")
    assert fingerprint(folder) == before


def test_a_hash_is_computed_once(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    read: list[str] = []
    real = hashes.sha256_of

    def counting(file: Path) -> str:
        read.append(str(file))
        return real(file)

    monkeypatch.setattr(hashes, "sha256_of", counting)
    assert cached_sha256(file) == cached_sha256(file) == hashlib.sha256(b"abc").hexdigest()
    assert len(read) == 1


def test_same_size_and_time_is_still_noticed(tmp_path: Path, own_cache: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    os.utime(file, ns=(1, 1))
    first = cached_sha256(file)
    file.write_bytes(b"xyz")
    os.utime(file, ns=(1, 1))
    assert cached_sha256(file) == hashlib.sha256(b"xyz").hexdigest() != first


def test_a_damaged_note_is_not_believed(tmp_path: Path, own_cache: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    right = cached_sha256(file)
    (note,) = (own_cache / "hashes").iterdir()
    for content in ("", "[]", '{"state": null}', "{"):
        note.write_text(content)
        assert cached_sha256(file) == right
