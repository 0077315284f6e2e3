"""The task `classify`: labels, the tokens of a text, and labels as words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunery import tasks
from tunery.data.rows import Row
from tunery.errors import DataError, InputError
from tunery.models.load import load_tokenizer
from tunery.recipe import Named

TEXT = "The cat reads a long book."


def row(label: str = "yes", text: str = TEXT, weight: float = 1.0) -> Row:
    return Row("label", {"text": text, "label": label, "weight": weight}, "rows.jsonl", 7)


def renderer(folder: Path, **options: Any) -> Any:
    task, chosen = tasks.of(Named(name="classify", options={"labels": ["no", "yes"], **options}))
    return task.renderer(load_tokenizer(folder), chosen)


def test_labels_are_those_of_the_rows_sorted() -> None:
    task, options = tasks.of(Named(name="classify"))
    assert task.find_labels(iter([row("b"), row("a"), row("b")]), options) == ("a", "b")  # type: ignore[attr-defined]


def test_tokens_are_the_tokenizers_own_and_the_first_one_carries_the_label(tiny_bert: Path, tiny_llama: Path) -> None:
    for folder, tail in ((tiny_bert, 1), (tiny_llama, 0)):
        own = renderer(folder)
        (sequence,) = own.sequences(row(weight=2.5))
        assert sequence.tokens.tolist() == load_tokenizer(folder)(TEXT).input_ids
        assert sequence.marks.tolist() == [1] + [-1] * (len(sequence.tokens) - 1)
        assert sequence.weights.tolist() == [2.5] + [0.0] * (len(sequence.tokens) - 1)
        assert own.tail == tail


def test_a_cut_text_keeps_its_label_and_what_ends_every_text(tiny_bert: Path) -> None:
    own = renderer(tiny_bert)
    (whole,) = own.sequences(row())
    short = whole.cut(5, own.tail)
    assert short.tokens.tolist() == [*whole.tokens[:4].tolist(), whole.tokens[-1]]
    assert short.marks[0] == 1
    cut = load_tokenizer(tiny_bert)(TEXT, truncation=True, max_length=5).input_ids
    assert short.tokens.tolist() == cut, "as transformers cuts"


def test_an_unknown_label_is_refused_with_the_nearest(tiny_bert: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:7: the label `yess` is not one of .* did you mean `yes`\?"):
        renderer(tiny_bert).sequences(row("yess"))


def test_another_kind_of_row_is_refused_with_what_is_needed(tiny_bert: Path) -> None:
    with pytest.raises(DataError, match=r"takes label rows .*`text` and `label`.*, this is a text row"):
        renderer(tiny_bert).sequences(Row("text", {"text": "a"}, "f", 1))


def test_what_is_cached_depends_on_the_labels_and_their_order(tiny_bert: Path) -> None:
    assert renderer(tiny_bert).fingerprint == renderer(tiny_bert).fingerprint
    assert renderer(tiny_bert).fingerprint != renderer(tiny_bert, labels=["yes", "no"]).fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a", "a"]}, "the label `a` is there twice"),
        ({"labels": ["a"]}, "two labels or more"),
        ({"labels": ["a", " b"]}, "white space"),
        ({"prompt": "{text}?"}, "add `as: words`"),
        ({"as": "words", "prompt": "what?"}, r"write \{text\} there"),
        ({"as": "wrods"}, "task.as"),
        ({"labls": ["a"]}, "did you mean `labels`"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tasks.of(Named(name="classify", options=options))


def test_one_label_in_the_rows_leaves_nothing_to_choose(tiny_bert: Path) -> None:
    task, options = tasks.of(Named(name="classify"))
    with pytest.raises(InputError, match=r"one label only \(`yes`\)"):
        task.renderer(load_tokenizer(tiny_bert), options.model_copy(update={"labels": ("yes",)}))


def test_words_are_a_chat_whose_answer_is_the_label(tiny_llama: Path) -> None:
    own = renderer(tiny_llama, **{"as": "words", "prompt": "{labels}? {text}"})
    (sequence,) = own.sequences(row(text="a {labels} b"))
    tokenizer = load_tokenizer(tiny_llama)
    asked: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": "no, yes? a {labels} b"}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert sequence.tokens[: len(asked)].tolist() == list(asked) == own.asked("a {labels} b") == own.prompt(row(text="a {labels} b")).ids
    learned = sequence.tokens[sequence.weights > 0].tolist()
    assert tokenizer.decode(learned) == "yes<|im_end|>"
    assert own.prompt(row("no")).reference == "no"


def test_words_honour_a_rows_weight_and_refuse_an_unknown_label(tiny_llama: Path) -> None:
    own = renderer(tiny_llama, **{"as": "words"})
    plain, heavy = own.sequences(row())[0].weights, own.sequences(row(weight=3.0))[0].weights
    assert np.array_equal(heavy, 3 * plain)
    with pytest.raises(DataError, match="did you mean `no`"):
        own.sequences(row("noo"))
