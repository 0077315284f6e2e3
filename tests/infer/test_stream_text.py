from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_families import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer

from tunery.infer.stream_text import stream_text
from tunery.models.load import load_tokenizer

TOKENIZERS = [tiny_tokenizer(), make_tokenizer("phi3")]
TOKENIZER = TOKENIZERS[0]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bytes", "metaspace"])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_the_pieces_are_the_text_whole_characters_only(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces = list(stream_text(ids, tokenizer))
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_a_character_of_several_tokens_comes_at_once_and_others_at_once_too() -> None:
    ids = TOKENIZER("a🙂b", add_special_tokens=False).input_ids
    assert len(ids) > 3  # the tiny vocabulary has no smiley: four tokens of a byte each
    assert list(stream_text(ids, TOKENIZER)) == ["a", "🙂", "b"]


def test_text_is_given_out_before_the_answer_ends() -> None:
    ids = TOKENIZER("the cat likes", add_special_tokens=False).input_ids
    read = 0

    def counted() -> object:
        nonlocal read
        for token in ids:
            read += 1
            yield token

    next(stream_text(counted(), TOKENIZER))  # type: ignore[arg-type]
    assert read == 1


def test_a_cut_character_at_the_end_is_not_lost_silently() -> None:
    ids = TOKENIZER("x🙂", add_special_tokens=False).input_ids[:-1]
    assert "".join(stream_text(ids, TOKENIZER)) == "x\ufffd"


def test_special_tokens_are_not_text() -> None:
    assert "".join(stream_text(TOKENIZER("yes<|im_end|>no", add_special_tokens=False).input_ids, TOKENIZER)) == "yesno"


@pytest.mark.real
def test_the_real_tokenizer(smollm2: Path) -> None:
    tokenizer = load_tokenizer(smollm2)
    text = "Dvořák 東京 👩‍🚀 — naïve\n\n  def f(x): return x  "
    assert "".join(stream_text(tokenizer(text).input_ids, tokenizer)) == text
