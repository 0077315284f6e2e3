from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_families import make_tokenizer

from tunery.data.render import Renderer
from tunery.errors import ProofError
from tunery.export.probes import CONVERSATIONS, TEXTS, make_probes, verify_probes
from tunery.models.load import load_tokenizer


def saved(tokenizer: Any, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["smollm2", "tools", "llama3", "phi3", "qwen3", "alpaca", "base", "base-bos", "base-metaspace"])
def test_a_saved_tokenizer_reproduces_the_probes_of_every_family(family: str, tmp_path: Path) -> None:
    probes = make_probes(Renderer(make_tokenizer(family)))
    assert len(probes) >= len(CONVERSATIONS) - 2  # Alpaca's template refuses the two with a system prompt
    assert len({tuple(p["ids"]) for p in probes}) == len(probes)
    verify_probes(probes, saved(make_tokenizer(family), tmp_path), "test")


def test_tools_are_probed_where_the_template_shows_them() -> None:
    with_tools = [p for p in make_probes(Renderer(make_tokenizer("tools"))) if p["tools"]]
    assert len(with_tools) == 1
    assert "get_weather" in with_tools[0]["text"]
    assert not any(p["tools"] for p in make_probes(Renderer(make_tokenizer("smollm2"))))


def test_a_model_without_a_template_is_probed_with_plain_text() -> None:
    probes = make_probes(Renderer(make_tokenizer("base-bos")))
    assert [p["text"] for p in probes] == list(TEXTS)
    assert all("messages" not in p for p in probes)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("helpful AI assistant", "helpful assistant"),  # the system prompt that the template puts in
        ("'<|im_end|>' + '\n'", "'<|im_end|>'"),  # a line break after a turn
        ("<|im_start|>assistant\n", "<|im_start|>assistant"),  # the generation prompt
        ("{% for message", "{{ bos_token }}{% for message"),  # a second BOS
    ],
)
def test_any_change_of_the_template_is_found(old: str, new: str, tiny_llama: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    probes = make_probes(Renderer(tokenizer))
    assert old in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(old, new)
    with pytest.raises(ProofError, match=r"merged: tokenizer and template give other ids .* probe \d+, place \d+"):
        verify_probes(probes, saved(tokenizer, tmp_path), "merged")


def test_another_tokenizer_is_found(tiny_llama: Path) -> None:
    probes = make_probes(Renderer(load_tokenizer(tiny_llama)))
    with pytest.raises(ProofError, match="other ids"):
        verify_probes(probes, make_tokenizer("smollm2"), "test")


def test_a_lost_template_is_found(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    probes = make_probes(Renderer(tokenizer))
    tokenizer.chat_template = None
    with pytest.raises(ProofError, match="refuses probe 0"):
        verify_probes(probes, tokenizer, "test")
