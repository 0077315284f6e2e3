"""The task `tag`: schemes, and the first piece of each word under tokenizers of every kind."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery import tasks
from tunery.data.rows import Row
from tunery.errors import DataError, InputError
from tunery.models.load import load_tokenizer
from tunery.recipe import Named
from tunery.tasks.tag import iob1_to_bio

LABELS = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
WORDS = ["Peter", "likes", "New", "Yorkshire", "'s", "10,000", "a", "--", "東京", "naïve", ".", "🙂"]


def row(tokens: list[str], tags: list[str], weight: float = 1.0) -> Row:
    return Row("tags", {"tokens": tokens, "tags": tags, "weight": weight}, "rows.jsonl", 3)


def renderer(tokenizer: Any, **options: Any) -> Any:
    task, chosen = tasks.of(Named(name="tag", options={"labels": LABELS, **options}))
    return task.renderer(tokenizer, chosen)


def find(*rows: Row, **options: Any) -> tuple[str, ...]:
    task, chosen = tasks.of(Named(name="tag", options=options))
    found: tuple[str, ...] = task.find_labels(iter(rows), chosen)  # type: ignore[attr-defined]
    return found


@cache
def metaspace() -> Any:
    """As Llama 2's and Gemma's: a mark for the space before a word, no division into words, unknown characters as bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    tokenizer.train_from_iterator(
        [" ".join(WORDS[:5])] * 3, trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(params=["word pieces", "bytes", "metaspace"])
def tokenizer(request: pytest.FixtureRequest, tiny_bert: Path, tiny_llama: Path) -> Any:
    if request.param == "metaspace":
        return metaspace()
    return load_tokenizer(tiny_bert if request.param == "word pieces" else tiny_llama)


def test_each_words_first_piece_is_where_its_first_letter_is(tokenizer: Any) -> None:
    ids, places = renderer(tokenizer).placed(WORDS)
    assert ids == tokenizer(" ".join(WORDS)).input_ids, "the text's own tokens, as any program that serves the model makes them"
    assert len(set(places)) == len(WORDS)
    assert places == sorted(places)
    encoding = tokenizer(" ".join(WORDS), return_offsets_mapping=True)
    begin = 0
    for word, place in zip(WORDS, places, strict=True):
        first, end = encoding.offset_mapping[place]
        assert first <= begin < end <= begin + len(word), word
        begin += len(word) + 1


def test_word_pieces_are_aligned_as_transformers_aligns_them(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(tiny_bert)
    own = tokenizer(WORDS, is_split_into_words=True)
    ids, places = renderer(tokenizer).placed(WORDS)
    assert ids == own.input_ids
    assert places == [own.word_ids().index(n) for n in range(len(WORDS))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Z"]), min_size=1, max_size=6), min_size=1, max_size=8))
def test_no_two_words_share_a_place(words: list[str]) -> None:
    own = renderer(metaspace())
    words = [w for w in words if not any(c.isspace() for c in w)] or ["a"]
    ids, places = own.placed(words)
    found = [p for p in places if p >= 0]
    assert found == sorted(set(found))
    assert all(0 < p < len(ids) for p in found)


def test_only_the_first_piece_is_learned_with_the_rows_weight(tiny_bert: Path) -> None:
    own = renderer(load_tokenizer(tiny_bert))
    (sequence,) = own.sequences(row(["Yorkshire", "likes"], ["B-LOC", "O"], weight=0.5))
    _, places = own.placed(["Yorkshire", "likes"])
    assert [own.labels[m] for m in sequence.marks[places]] == ["B-LOC", "O"]
    assert sequence.weights.sum() == 1.0
    assert (sequence.marks >= 0).sum() == 2 < len(sequence.tokens) - 2


def test_a_word_of_which_the_tokenizer_makes_nothing_is_not_learned(tiny_bert: Path) -> None:
    own = renderer(load_tokenizer(tiny_bert))
    (sequence,) = own.sequences(row(["a", "\u200b", "b"], ["O", "B-PER", "O"]))
    assert (sequence.marks >= 0).sum() == 2
    assert own.placed(["a", "\u200b", "b"])[1][1] == -1
    with pytest.raises(DataError, match="makes nothing of this text"):
        own.sequences(row(["\u200b"], ["O"]))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["O", "I-LOC"], r"tag 2 `I-LOC` \(of `b`\) follows `O`.* write `B-LOC`.*`scheme: iob1`"),
        (["B-PER", "I-LOC"], "tag 2 `I-LOC` .* follows `B-PER`"),
        (["B-PER", "S-LOC"], r"tag 2 `S-LOC` \(of `b`\) is neither O nor B-… or I-…"),
        (["B-PER", "B-LOCC"], "the tag `B-LOCC` is not one of .* did you mean `B-LOC`"),
    ],
)
def test_broken_tags_are_refused_with_place_and_mend(tiny_bert: Path, tags: list[str], message: str) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:3: .*" + message):
        renderer(load_tokenizer(tiny_bert)).sequences(row(["a", "b"], tags))


def test_iob1_becomes_bio() -> None:
    assert iob1_to_bio(["I-LOC", "I-LOC", "B-LOC", "O", "I-PER", "I-LOC"]) == ["B-LOC", "I-LOC", "B-LOC", "O", "B-PER", "B-LOC"]
    assert iob1_to_bio([]) == []


def test_iob1_rows_are_learned_in_bio(tiny_bert: Path) -> None:
    own = renderer(load_tokenizer(tiny_bert), scheme="iob1")
    assert own.tags(row(["a", "b"], ["I-LOC", "I-LOC"])) == ["B-LOC", "I-LOC"]
    assert own.fingerprint != renderer(load_tokenizer(tiny_bert)).fingerprint


def test_labels_of_the_rows_are_whole() -> None:
    rows = [row(["a", "b"], ["B-PER", "O"]), row(["c"], ["I-LOC"])]
    assert find(*rows) == ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
    assert find(row(["a"], ["NN"]), row(["b"], ["VB"]), scheme="plain") == ("NN", "VB")


def test_plain_tags_are_taken_as_they_are_and_have_no_entities(tiny_bert: Path) -> None:
    own = renderer(load_tokenizer(tiny_bert), labels=["NN", "VB"], scheme="plain")
    assert own.tags(row(["a", "b"], ["VB", "NN"])) == ["VB", "NN"]
    plain, _ = tasks.of(Named(name="tag", options={"scheme": "plain"}))
    assert plain.METRICS == ("tag_accuracy",)  # type: ignore[attr-defined]
    assert plain.FORM == "token"


def test_labels_that_are_no_scheme_are_refused() -> None:
    for labels in (["NN", "VB"], ["B-LOC", "I-LOC"]):
        with pytest.raises(InputError, match="scheme: plain"):
            tasks.of(Named(name="tag", options={"labels": labels}))


def test_a_reader_is_shown_the_words_with_their_tags(tiny_bert: Path) -> None:
    own = renderer(load_tokenizer(tiny_bert))
    (sequence,) = own.sequences(row(["The", "cat"], ["B-PER", "O"]))
    assert "".join(text for text, _ in own.stretches(sequence)) == "[CLS] the/B-PER cat [SEP]"
