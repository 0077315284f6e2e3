"""SHA-256 of large files, each computed once.

A hash is remembered in the cache beside the file's size, inode and times (modified and changed, in nanoseconds), and
computed anew when any of them differs.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tunery.models.cache import cache_folder
from tunery.run import sha256_of, write_text

_NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
)


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 by file name of everything that decides what a model answers: weights, tokenizer, template, config."""
    files = [folder / name for name in _NAMES if (folder / name).is_file()]
    files += sorted(folder.glob("*.safetensors"))
    return {file.name: cached_sha256(file) for file in sorted(files)}


def cached_sha256(file: Path) -> str:
    """The file's SHA-256 in hexadecimal, from the cache when the file has not changed since."""
    file = file.resolve()
    now = _state(file)
    note = cache_folder() / "hashes" / f"{hashlib.sha256(str(file).encode()).hexdigest()[:32]}.json"
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["state"] == now:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never hashed, or an unreadable note: hash it
    digest = sha256_of(file)
    if _state(file) == now:  # not when it changed while it was read
        write_text(note, json.dumps({"file": str(file), "state": now, "sha256": digest}))
    return digest


def _state(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
