"""Tokenising is done once, before the processes meet, and of these the first one alone writes: every process's file accesses are watched."""

from __future__ import annotations

import json
from pathlib import Path

from launched import command, finish, job, start

WATCH = """
import json, os, sys

_out = os.open(os.environ["WATCH_OUT"], os.O_WRONLY | os.O_APPEND)
_roots = tuple(os.environ["WATCH_ROOTS"].split(os.pathsep))
_changes = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")


def _note(event, arguments):
    if event == "open":
        path, _, flags = arguments
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            return
    elif event in _changes:
        path = arguments[1] if event == "os.rename" else arguments[0]
    else:
        return
    if isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(_roots):
        os.write(_out, (json.dumps([os.environ.get("RANK"), event, os.path.abspath(path)]) + "\\n").encode())


sys.addaudithook(_note)
"""
"""Loaded by every Python process that finds it as `sitecustomize`. What a library writes in another language is seen by the folder or
the name that it is given: ours are all made, or moved to their place, from Python."""


def test_who_writes(tiny_llama: Path, tmp_path: Path) -> None:
    run, cache, seen, watch = (tmp_path / name for name in ("run", "cache", "seen.jsonl", "watch"))
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH)
    seen.write_text("")
    recipe = job(tmp_path / "job", tiny_llama, sharding={"stage": "zero3", "processes": 2}, train={"epochs": 1}, data={"valid": 0.1})
    settings = {"TUNERY_CACHE": str(cache), "WATCH_OUT": str(seen), "WATCH_ROOTS": f"{run}:{cache}:{tmp_path / 'job'}"}
    code, _, err = finish(start([str(command(tmp_path)), "train", str(recipe), "--run", str(run)], watch, **settings))
    assert code == 0, err[-3000:]

    written: dict[str | None, list[str]] = {}
    for rank, _, path in map(json.loads, seen.read_text().splitlines()):
        written.setdefault(rank, []).append(path)
    assert "1" not in written, written["1"]
    assert any(path.endswith("metrics.jsonl") for path in written["0"])
    assert any("/checkpoints/" in path for path in written["0"])
    # Tokens lie in the cache, which the command filled before it started them, once for the one file that is read.
    assert not [path for path in written["0"] if path.startswith(str(cache))]
    (tokens,) = (path for path in (cache / "tokenised").iterdir() if path.is_dir())
    assert [path for path in written[None] if path.endswith("tokens.npy")] != []
    assert written[None].count(str(tokens)) == 1, "put in its place once"
