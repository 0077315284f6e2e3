"""Fixtures of the data room."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_families import make_tokenizer


@pytest.fixture
def renderer() -> Callable[[str], Any]:
    """`renderer("llama3")` is the Renderer of that family's tokenizer and template."""
    from tunery.data.render import Renderer

    return lambda name: Renderer(make_tokenizer(name))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write("a.jsonl", rows or text or bytes)` writes a file and gives its path."""

    def write(name: str, content: Any) -> Path:
        file = tmp_path / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif isinstance(content, str):
            file.write_bytes(content.encode("utf-8"))
        else:
            file.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content).encode("utf-8"))
        return file

    return write
