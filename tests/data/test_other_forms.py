"""Alpaca and ShareGPT rows are read as the `messages` rows that they stand for."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.data.other_forms import as_openai
from tunery.data.rows import Row, read_rows
from tunery.data.validate import RowProblem, validate
from tunery.errors import DataError

Write = Callable[..., Path]
Make = Callable[[str], Any]

FUNCTION = {"name": "weather", "description": "now", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def say(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Split"}}}],
}
SUMS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": n, "arguments": {}}} for n in ("a", "b")],
}

SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "alpaca": (
        {"instruction": "Translate.", "input": "dobar dan", "output": "good day", "text": "Below is an instruction ..."},
        {"messages": [say("user", "Translate.\ndobar dan"), say("assistant", "good day")]},
    ),
    "alpaca without input": (
        {"instruction": "Say it.", "input": "", "output": "it"},
        {"messages": [say("user", "Say it."), say("assistant", "it")]},
    ),
    "alpaca with the question in input": (
        {"instruction": "", "input": "Say it.", "output": "it"},
        {"messages": [say("user", "Say it."), say("assistant", "it")]},
    ),
    "alpaca with system, history and tools": (
        {
            "instruction": "And now?",
            "input": None,
            "output": "c",
            "system": "Be brief.",
            "history": [["a?", "a"], ["b?", "b"]],
            "tools": json.dumps([FUNCTION]),
        },
        {
            "messages": [
                say("system", "Be brief."),
                say("user", "a?"),
                say("assistant", "a"),
                say("user", "b?"),
                say("assistant", "b"),
                say("user", "And now?"),
                say("assistant", "c"),
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
        },
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}], "id": "x1"},
        {"messages": [say("user", "Hello"), say("assistant", "Hi")]},
    ),
    "sharegpt with a system column": (
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}], "system": "Be brief."},
        {"messages": [say("system", "Be brief."), say("user", "Hello"), say("assistant", "Hi")]},
    ),
    "sharegpt with a system turn and the same column": (
        {
            "conversations": [{"from": "system", "value": "S"}, {"from": "user", "value": "Hello"}, {"from": "assistant", "value": "Hi"}],
            "system": "S",
        },
        {"messages": [say("system", "S"), say("user", "Hello"), say("assistant", "Hi")]},
    ),
    "sharegpt with a call, what was observed, and a turn that is not learned": (
        {
            "conversations": [
                {"from": "human", "value": "weather?"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Split"}}'},
                {"from": "observation", "value": '{"sky": "clear"}'},
                {"from": "gpt", "value": "Clear.", "weight": 0},
                {"from": "human", "value": "both"},
                {"from": "function_call", "value": '[{"name": "a", "arguments": "{}"}, {"name": "b"}]'},
                {"from": "tool", "value": "1 and 2"},
                {"from": "gpt", "value": "3"},
            ],
            "tools": json.dumps([FUNCTION]),
        },
        {
            "messages": [
                say("user", "weather?"),
                CALL,
                say("tool", '{"sky": "clear"}'),
                say("assistant", "Clear.", weight=0),
                say("user", "both"),
                SUMS,
                say("tool", "1 and 2"),
                say("assistant", "3"),
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
        },
    ),
    "openai's messages under sharegpt's name": (
        {"conversations": [say("user", "Hello"), {**say("assistant", "Hi"), "from": None, "value": None}]},
        {"messages": [say("user", "Hello"), say("assistant", "Hi")]},
    ),
    "a pair of alpaca's": (
        {"instruction": "Which?", "input": "", "chosen": "this", "rejected": "that"},
        {
            "input": {"messages": [say("user", "Which?")]},
            "preferred_completion": [say("assistant", "this")],
            "non_preferred_completion": [say("assistant", "that")],
        },
    ),
    "a pair of sharegpt's": (
        {
            "conversations": [{"from": "human", "value": "Which?"}],
            "chosen": {"from": "gpt", "value": "this"},
            "rejected": {"from": "gpt", "value": "that"},
        },
        {
            "input": {"messages": [say("user", "Which?")]},
            "preferred_completion": [say("assistant", "this")],
            "non_preferred_completion": [say("assistant", "that")],
        },
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_the_row_is_the_same_as_in_openais_form(case: str) -> None:
    row, same = SAME[case]
    assert validate(row) == validate(same)


@pytest.mark.parametrize("case", [c for c in SAME if "pair" not in c])
def test_what_is_learned_is_the_same_token_by_token(renderer: Make, case: str) -> None:
    row, same = SAME[case]
    r = renderer("tools")
    first, second = ([(s.tokens, s.weights) for s in r.sequences(Row(*validate(raw), source="a", line=1))] for raw in (row, same))
    assert len(first) == len(second) > 0
    for (tokens, weights), (other_tokens, other_weights) in zip(first, second, strict=True):
        np.testing.assert_array_equal(tokens, other_tokens)
        np.testing.assert_array_equal(weights, other_weights)
        assert weights.any()


TEXT = st.text(min_size=1, max_size=8).filter(str.strip)


@given(TEXT, TEXT, st.lists(st.tuples(TEXT, TEXT), max_size=2), st.none() | TEXT)
def test_any_alpaca_row_is_its_conversation(instruction: str, output: str, history: list[tuple[str, str]], system: str | None) -> None:
    turns = [turn for pair in (*history, (instruction, output)) for turn in zip(("user", "assistant"), pair, strict=True)]
    messages = [*([say("system", system)] if system else []), *(say(role, text) for role, text in turns)]
    row = {"instruction": instruction, "input": "", "output": output, "history": [list(pair) for pair in history], "system": system}
    shared = {
        "conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(m["role"], "system"), "value": m["content"]} for m in messages]
    }
    assert as_openai(row) == as_openai(shared) == {"messages": messages}


def test_files_of_every_form_hold_them(write: Write, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [{"instruction": "i", "input": "x", "output": "o", "history": [["a", "b"]], "n": n} for n in range(2)]
    talks = [{"conversations": [{"from": "human", "value": "i"}, {"from": "gpt", "value": "o"}], "tools": json.dumps([FUNCTION])}]
    for name, content in (("alpaca", rows), ("sharegpt", talks)):
        text = io.StringIO()
        table = csv.DictWriter(text, list(content[0]))
        table.writeheader()
        table.writerows([{k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in content])
        parquet.write_table(pa.Table.from_pylist(content), tmp_path / f"{name}.parquet")
        expected = [validate(row)[1] for row in content]
        for file in (write(f"{name}.jsonl", content), write(f"{name}.json", json.dumps(content)), write(f"{name}.csv", text.getvalue())):
            assert [r.value for r in read_rows(str(file))] == expected, file
        assert [r.value for r in read_rows(str(tmp_path / f"{name}.parquet"))] == expected


TALK = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "both forms": ({"instruction": "a", "output": "b", "conversations": TALK}, "both a ShareGPT row (`conversations`) and an Alpaca row"),
    "two questions": ({"instruction": "a", "prompt": "b", "output": "c"}, "both `instruction` and `prompt`, so what is asked is not clear"),
    "two systems": (
        {"conversations": [{"from": "system", "value": "s"}, *TALK], "system": "t"},
        "two system prompts, `system` and the first turn",
    ),
    "answer and pair": ({"instruction": "a", "output": "b", "chosen": "c", "rejected": "d"}, "has `output` and a pair"),
    "nothing asked": ({"instruction": "", "input": " ", "output": "b"}, "`instruction` and `input` are empty"),
    "no answer": ({"instruction": "a", "output": ""}, "`output` is empty; write the answer"),
    "null answer": ({"instruction": "a", "output": None}, "`output` is empty"),
    "an answer that is a list": ({"instruction": "a", "output": ["b"]}, "`output` must be text, this is a list"),
    "a question that is a number": ({"instruction": 3, "output": "b"}, "`instruction` must be text, this is a number"),
    "system is a list": ({"instruction": "a", "output": "b", "system": ["s"]}, "`system` must be text, this is a list"),
    "history is text": ({"instruction": "a", "output": "b", "history": "x"}, "`history` must be a list of [question, answer] pairs"),
    "history of triples": ({"instruction": "a", "output": "b", "history": [["x", "y", "z"]]}, "`history`: turn 1 is not a pair"),
    "empty history answer": ({"instruction": "a", "output": "b", "history": [["x", ""]]}, "the assistant's text is empty"),
    "conversations is text": ({"conversations": "x"}, "`conversations` must be a list"),
    "no turns": ({"conversations": []}, "this is empty"),
    "a turn of text": ({"conversations": ["x"]}, "turn 1 is text, not an object"),
    "a turn without a speaker": ({"conversations": [{"value": "x"}]}, "turn 1 has `value`"),
    "unknown speaker": ({"conversations": [{"from": "humann", "value": "x"}]}, "the unknown speaker 'humann'; did you mean `human`?"),
    "a value that is null": ({"conversations": [{"from": "human", "value": None}]}, "turn 1: `value` must be text, this is null"),
    "ends with the human": ({"conversations": [*TALK, {"from": "human", "value": "c"}]}, "the last message must be the assistant's answer"),
    "begins with gpt": ({"conversations": [TALK[1], TALK[0], TALK[1]]}, "the first message is the assistant's"),
    "observed nothing": ({"conversations": [TALK[0], {"from": "observation", "value": "c"}, TALK[1]]}, "message 2 is a tool's"),
    "a call that is no JSON": (
        {"conversations": [TALK[0], {"from": "function_call", "value": "weather()"}]},
        "turn 2: the function call is not valid JSON",
    ),
    "a call without a name": ({"conversations": [TALK[0], {"from": "function_call", "value": '{"x": 1}'}]}, "turn 2: a function call is"),
    "tools that are no JSON": ({"conversations": TALK, "tools": "weather"}, "`tools` is not valid JSON"),
    "tools that are no list": ({"conversations": TALK, "tools": '"x"'}, "`tools` must be a list of functions, this is text"),
    "weight of the human": ({"conversations": [{**TALK[0], "weight": 1}, TALK[1]]}, "only the assistant's messages are learned"),
    "marked good": ({"instruction": "a", "output": "b", "kto_tag": True}, "`kto_tag` marks one answer as good or bad"),
    "marked bad": ({"conversations": TALK, "kto_tag": False}, "`kto_tag` marks one answer as good or bad"),
    "a picture": ({"conversations": TALK, "images": ["a.png"]}, "`images`: a language model learns text only"),
    "half a pair": ({"instruction": "a", "chosen": "b"}, "`rejected` is missing"),
    "a pair from the human": ({"conversations": TALK[:1], "chosen": TALK[0], "rejected": TALK[1]}, "`chosen` must be an answer"),
    "equal sides": ({"instruction": "a", "chosen": "b", "rejected": "b"}, "are the same"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_or_ambiguous_row_says_so_by_line(write: Write, case: str) -> None:
    row, message = REFUSED[case]
    file = write("a.jsonl", [row])
    with pytest.raises(DataError) as e:
        list(read_rows(str(file)))
    assert str(e.value).startswith(f"{file}:1: ")
    assert message in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [say("user", "a"), say("assistant", "b")], "conversations": TALK, "instruction": "x", "output": "y"},
        {"prompt": "a", "completion": "b", "instruction": "x", "output": "y"},
        {"text": "a", "instruction": "x"},
    ],
)
def test_rows_of_other_kinds_are_left_as_they_are(row: dict[str, Any]) -> None:
    assert as_openai(row) is row
    validate(row)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "value", "role", "content", "name"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["instruction", "input", "output", "system", "history", "conversations", "tools", "chosen", "rejected"]), JSON
    )
)
def test_any_values_end_in_a_row_or_in_one_sentence(row: dict[str, Any]) -> None:
    said = "a row"
    try:
        validate(row)
    except RowProblem as e:
        said = str(e)
    assert said
    assert "\n" not in said
