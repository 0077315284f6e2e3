"""Preference rows: every form read, wrong ones refused by line, and both sides tokenised as serving would see them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_families import make_tokenizer

from tunery.data import pairs
from tunery.data.content import content_hash, conversation, group_hash, question_and_answer
from tunery.data.pairs import PairRenderer, part
from tunery.data.render import Renderer
from tunery.data.rows import Row, read_rows
from tunery.data.tokenised import Tokenised, tokenise
from tunery.errors import DataError

Write = Callable[..., Path]

USER, GOOD, BAD = (
    {"role": "user", "content": "Which is it?"},
    {"role": "assistant", "content": "A river."},
    {"role": "assistant", "content": "A cat, I think."},
)
OPENAI: dict[str, Any] = {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}
READ = {
    "messages": [USER],
    "chosen": [GOOD],
    "rejected": [BAD],
    "weights": {"chosen": [1.0], "rejected": [1.0]},
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
}


def one(write: Write, row: dict[str, Any]) -> Row:
    (found,) = read_rows(str(write("a.jsonl", [row])))
    return found


SAME = {
    "openai": OPENAI,
    "openai, the API's names": {"input": {"messages": [USER]}, "preferred_completion": [GOOD], "non_preferred_completion": [BAD]},
    "lists of messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "text prompt, lists of messages": {"prompt": USER["content"], "chosen": [GOOD], "rejected": [BAD]},
    "messages and text answers": {"prompt": [USER], "chosen": GOOD["content"], "rejected": BAD["content"]},
    "single messages": {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
    "whole conversations": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "whole conversations, prompt and messages again": {
        "prompt": USER["content"], "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD], "score_chosen": 8.0,
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": USER["content"]}],
        "chosen": {"from": "gpt", "value": GOOD["content"]},
        "rejected": {"from": "gpt", "value": BAD["content"]},
    },
}  # fmt: skip


@pytest.mark.parametrize("form", SAME)
def test_every_form_gives_the_same_row(write: Write, form: str) -> None:
    row = one(write, SAME[form])
    assert (row.kind, row.value) == ("preference", READ)


def test_text_stays_text_also_from_tables(write: Write, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    row = {"prompt": "Which is it?", "chosen": "A river.", "rejected": "A cat."}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    write("a.csv", "prompt,chosen,rejected,id\nWhich is it?,A river.,A cat.,7\n")
    for file in (write("a.jsonl", [row]), tmp_path / "a.parquet", tmp_path / "a.csv"):
        (found,) = read_rows(str(file))
        assert (found.kind, found.value) == ("preference", row)


def test_lists_of_messages_in_parquet_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    for form in ("openai", "lists of messages", "whole conversations", "whole conversations, prompt and messages again"):
        parquet.write_table(pa.Table.from_pylist([SAME[form]]), tmp_path / "a.parquet")
        assert [row.value for row in read_rows(str(tmp_path / "a.parquet"))] == [READ], form


def test_earlier_answers_in_the_prompt_are_not_learned_and_tools_are_kept(write: Write) -> None:
    before = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "Hm."}, USER]
    row = one(write, {"input": {"messages": before, "tools": [TOOL]}, "preferred_output": [CALL], "non_preferred_output": [BAD]})
    assert row.value["tools"] == [TOOL]
    assert row.value["chosen"][0]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {}}
    (_, chosen), (_, rejected) = pairs.preference.sides(row.value)
    assert chosen["weights"] == rejected["weights"] == [0, 0, 0, 0, 1]
    assert [m["role"] for m in chosen["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    whole = one(write, {"chosen": [*before, GOOD], "rejected": [*before, BAD], "tools": [TOOL]})
    assert pairs.preference.sides(whole.value)[0][1]["weights"] == [0, 0, 0, 0, 1]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "the same": ({**OPENAI, "non_preferred_output": [GOOD]}, "`preferred_output` and `non_preferred_output` are the same, so neither can be preferred"),
    "the same text": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "`chosen` and `rejected` are the same"),
    "white space": ({"prompt": "a", "chosen": "b c", "rejected": "b  c\n"}, "`chosen` and `rejected` differ only in white space"),
    "white space in messages": ({"prompt": "a", "chosen": [GOOD], "rejected": [{**GOOD, "content": " A river. "}]}, "differ only in white space"),
    "empty side": ({"prompt": "a", "chosen": "b", "rejected": " "}, "`rejected` is empty; write the answer or remove the row"),
    "empty prompt": ({"prompt": "", "chosen": "b", "rejected": "c"}, "`prompt` is empty; write the question"),
    "empty list": ({**OPENAI, "preferred_output": []}, "`preferred_output` must be the answer, as text or as a list of messages, this is empty"),
    "empty message": ({**OPENAI, "preferred_output": [{**GOOD, "content": ""}]}, "`preferred_output`, with its prompt: message 2: the assistant's text is empty"),
    "one side": ({"prompt": "a", "chosen": "b"}, "missing column `rejected`: a row with `chosen` needs both"),
    "one side of openai's": ({"input": {"messages": [USER]}, "preferred_output": [GOOD]}, "missing column `non_preferred_output`"),
    "no input": ({"preferred_output": [GOOD], "non_preferred_output": [BAD]}, "`input` is missing; write"),
    "input of text": ({**OPENAI, "input": "Which is it?"}, "`input` is not an object with `messages`"),
    "no prompt": ({"chosen": "b", "rejected": "c"}, "missing column `prompt`"),
    "different prompts": ({"chosen": [USER, GOOD], "rejected": [{**USER, "content": "What?"}, BAD]}, "conversations that do not begin alike"),
    "another prompt": ({"prompt": "What?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "`prompt` is not what `chosen` and `rejected` begin with"),
    "no answer": ({"chosen": [USER], "rejected": [USER, BAD]}, "`chosen` has no answer after the prompt"),
    "ends with a user": ({**OPENAI, "preferred_output": [GOOD, USER]}, "`preferred_output`, with its prompt: the last message must be the assistant's"),
    "not learned": ({**OPENAI, "preferred_output": [{**GOOD, "weight": 0}]}, "every assistant message has weight 0"),
    "bad role": ({**OPENAI, "preferred_output": [{"role": "bot", "content": "x"}]}, "unknown role 'bot'; did you mean `assistant`?"),
    "a number": ({"prompt": "a", "chosen": 3, "rejected": "c"}, "`chosen` must be the answer, as text or as a list of messages, this is a number"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_row_is_refused_by_line_with_the_mend(write: Write, case: str) -> None:
    row, message = WRONG[case]
    file = write("a.jsonl", [OPENAI, row])
    with pytest.raises(DataError) as caught:
        list(read_rows(str(file)))
    assert str(caught.value).startswith(f"{file}:2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_chat_with_one_empty_column_stays_a_chat(write: Write) -> None:
    (row,) = read_rows(str(write("a.csv", "prompt,completion,chosen,rejected\na,b,,\n")))
    assert row.kind == "completion"


def test_what_a_pair_says(write: Write) -> None:
    row, other = one(write, OPENAI), one(write, {**OPENAI, "non_preferred_output": [{**BAD, "content": "A house."}]})
    assert [m["content"] for m in conversation(row)] == ["Which is it?", "A river.", "A cat, I think."]
    assert question_and_answer(row) == ("Which is it?", "A river.\nA cat, I think.")
    assert content_hash(row) != content_hash(other)
    assert group_hash(row) == group_hash(other) != content_hash(row)
    text = one(write, {"prompt": "Which is it?", "chosen": "A river.", "rejected": "A cat, I think."})
    assert (content_hash(text), group_hash(text)) == (content_hash(row), group_hash(row))
    swapped = one(write, {**OPENAI, "preferred_output": [BAD], "non_preferred_output": [GOOD]})
    assert content_hash(swapped) != content_hash(row)


# ---- tokens ----

FAMILIES = ["smollm2", "tools", "llama3", "phi3", "qwen3", "alpaca"]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_side_is_what_a_chat_with_that_answer_would_be(write: Write, family: str) -> None:
    tokenizer = make_tokenizer(family)
    rows = [OPENAI, {"prompt": USER["content"], "chosen": GOOD["content"], "rejected": BAD["content"]}]
    for row in read_rows(str(write("a.jsonl", rows[:1]))), read_rows(str(write("b.jsonl", rows[1:]))):
        (sequence,) = PairRenderer(tokenizer).sequences(next(iter(row)))
        for side, answer in zip(part(sequence), (GOOD, BAD), strict=True):
            chat = Row("chat", {"messages": [USER, answer], "weights": [0.0, 1.0]}, "a", 1)
            (expected,) = Renderer(tokenizer).sequences(chat)
            assert side.tokens.tolist() == expected.tokens.tolist()
            assert side.weights.tolist() == expected.weights.tolist()
        assert sequence.marks is not None
        assert sequence.marks.tolist() == sorted(sequence.marks.tolist())
        assert len(sequence.marks) == len(sequence.tokens) == len(sequence.weights)


def test_the_weights_of_an_answers_turns_are_honoured(write: Write) -> None:
    later = [{**GOOD, "weight": 0.5}, USER, {"role": "assistant", "content": "Yes."}]
    row = one(write, {"prompt": [USER], "chosen": later, "rejected": [BAD]})
    (sequence,) = PairRenderer(make_tokenizer("smollm2")).sequences(row)
    chosen, rejected = part(sequence)
    assert set(chosen.weights.tolist()) == {0, 0.5, 1}
    assert set(rejected.weights.tolist()) == {0, 1}


def test_a_prompt_asks_for_the_preferred_answer(write: Write) -> None:
    renderer = PairRenderer(make_tokenizer("llama3"))
    row = one(write, OPENAI)
    prompt = renderer.prompt(row)
    assert prompt.reference == "A river."
    for side in part(renderer.sequences(row)[0]):
        assert side.tokens[: len(prompt.ids)].tolist() == prompt.ids
        assert np.flatnonzero(side.weights)[0] == len(prompt.ids)


def test_what_a_template_makes_equal_or_breaks_up_is_refused_by_line(write: Write) -> None:
    trimmed = {"prompt": "a", "chosen": [GOOD], "rejected": [{**GOOD, "content": "A river. "}]}
    with pytest.raises(DataError, match="differ only in white space"):
        one(write, trimmed)
    hidden = {"prompt": "a", "chosen": [{**GOOD, "name": "x"}], "rejected": [{**GOOD, "name": "y"}]}
    with pytest.raises(DataError, match="are the same"):
        one(write, hidden)
    thoughts = [{**GOOD, "content": f"<think>\n{thought}\n</think>\n\nA river."} for thought in ("b", "b\n")]
    several = {"prompt": [USER], "chosen": [thoughts[0], USER, GOOD], "rejected": [BAD]}
    row = one(write, several)
    (found,) = PairRenderer(make_tokenizer("qwen3")).batch([row])
    assert isinstance(found, DataError)
    assert "keep one assistant message a side" in str(found)
    assert found.line == 1


def test_rows_of_another_kind_are_refused_by_line() -> None:
    rows = [Row("completion", {"prompt": "a", "completion": "b"}, "a.jsonl", 3), Row("preference", READ, "a.jsonl", 4)]
    wrong, right = PairRenderer(make_tokenizer("smollm2")).batch(rows)
    assert str(wrong) == "a.jsonl:3: the recipe's task takes preference rows, this is a completion row; change the task or the data"
    assert isinstance(right, list)
    (refused,) = Renderer(make_tokenizer("smollm2")).batch(rows[1:])
    assert "a.jsonl:4: the recipe's task does not take preference rows" in str(refused)


# ---- stored and cut ----


def view_of(file: Path, max_length: int, family: str = "smollm2") -> Tokenised:
    stored = tokenise(str(file), None, PairRenderer(make_tokenizer(family)), file.parent / "cache")
    return Tokenised([(stored, np.arange(len(stored.lines)))], max_length)


def rows_of_lengths(*lengths: tuple[int, int, int]) -> str:
    """Pairs by how many times a word is repeated in the prompt, the preferred and the other answer."""
    words = [("a" + " cat" * p, "x" + " river" * c, "y" + " house" * r) for p, c, r in lengths]
    return "".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in words)


def test_sides_are_cut_each_at_the_right_and_counted(write: Write) -> None:
    file = write("a.jsonl", rows_of_lengths((2, 3, 3), (2, 60, 3), (2, 3, 60), (200, 3, 3)))
    whole = view_of(file, 10_000)
    assert (len(whole), whole.truncated, whole.dropped) == (4, 0, 0)
    assert whole.lengths.tolist() == [len(whole[n].tokens) for n in range(4)]
    short = int(whole.lengths[0])  # more than either side of the first pair, less than the long ones
    view = view_of(file, short)
    assert (view.truncated, view.dropped) == (3, 1)  # the prompt of the last leaves no room for an answer
    assert view.rows.tolist() == [0, 1, 2]
    for n in range(3):
        for side, uncut in zip(part(view[n]), part(whole[n]), strict=True):
            assert side.tokens.tolist() == uncut.tokens[:short].tolist()
            assert side.weights.tolist() == uncut.weights[:short].tolist()
        assert view.lengths[n] == len(view[n].tokens)
        assert view.supervised[n] == view[n].weights.sum()
        assert view.learned[n] == (view[n].weights > 0).sum()
    assert view.whole_length(1) == len(part(whole[1])[0].tokens)
    assert view.whole_length(2) == len(part(whole[2])[1].tokens)


def test_a_pair_that_a_cut_makes_equal_is_dropped(write: Write) -> None:
    long = "the cat sees the river " * 20
    file = write(
        "a.jsonl", [{"prompt": "a", "chosen": f"{long}yes", "rejected": f"{long}no"}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    )
    view = view_of(file, 60)
    assert (view.rows.tolist(), view.truncated, view.dropped) == ([1], 1, 1)
    assert len(view_of(file, 10_000)) == 2


def test_the_share_of_longer_preferred_answers(write: Write) -> None:
    view = view_of(write("a.jsonl", rows_of_lengths((2, 3, 1), (2, 1, 3), (2, 5, 1), (2, 2, 2))), 1000)
    lengths = [[(s.weights > 0).sum() for s in part(view[n])] for n in range(4)]
    expected = sum((a > b) + (a == b) / 2 for a, b in lengths) / 4
    assert pairs.longer_preferred(view[n] for n in range(4)) == expected
    assert 0.5 < expected < 1
    assert pairs.longer_preferred([]) is None


def test_pairs_and_chats_of_one_file_are_cached_apart(write: Write) -> None:
    file = write("a.jsonl", [OPENAI])
    tokenizer = make_tokenizer("smollm2")
    stored = [tokenise(str(file), None, r, file.parent / "cache") for r in (Renderer(tokenizer), PairRenderer(tokenizer))]
    assert [(len(s.lines), s.problem_count) for s in stored] == [(0, 1), (1, 0)]
