from __future__ import annotations

import csv
import io
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunery.data.rows import Row, read_rows
from tunery.errors import DataError

Write = Callable[..., Path]

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
LINE = json.dumps(CHAT)


def rows_of(file: Path) -> list[Row]:
    return list(read_rows(str(file)))


def refusal(file: Path, line: int | None) -> str:
    """The only refusal of a file: it must be one sentence that begins with the place."""
    with pytest.raises(DataError) as caught:
        rows_of(file)
    text = str(caught.value)
    assert text.startswith(f"{file}:{line}: " if line else f"{file}: ")
    assert "\n" not in text
    assert caught.value.line == line
    return text


# ---- accepted ----


def test_chat_lines_become_rows_with_their_lines(write: Write) -> None:
    first, second = rows_of(write("a.jsonl", f"{LINE}\n\n{LINE}\n"))
    assert (first.kind, first.line, second.line) == ("chat", 1, 3)
    assert first.value == {**CHAT, "weights": [0.0, 1.0]}


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf" + LINE.encode(), LINE.encode() + b"\r\n" + LINE.encode() + b"\r\n", LINE.encode() + b"\n\n \t\n\r\n", LINE.encode()],
    ids=["bom", "crlf", "blank lines at the end", "no line end"],
)
def test_bom_crlf_and_trailing_blank_lines_are_accepted(write: Write, content: bytes) -> None:
    assert {r.kind for r in rows_of(write("a.jsonl", content))} == {"chat"}


def test_every_form_gives_the_same_rows(write: Write, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    pairs = [{"prompt": 'one, "two"\nthree', "completion": "vier", "id": n} for n in range(3)]
    expected = [{"prompt": p["prompt"], "completion": p["completion"]} for p in pairs]
    text = io.StringIO()
    table = csv.DictWriter(text, ["id", "prompt", "completion"])
    table.writeheader()
    table.writerows(pairs)
    parquet.write_table(pa.Table.from_pylist(pairs), tmp_path / "a.parquet")
    tabbed = "prompt\tcompletion\n" + "".join('"one, ""two""\nthree"\tvier\n' for _ in pairs)
    files = {
        write("a.jsonl", pairs): [1, 2, 3],
        write("a.json", json.dumps(pairs, indent=1)): [2, 7, 12],
        write("a.csv", text.getvalue()): [2, 4, 6],
        write("a.tsv", tabbed): [2, 4, 6],
        tmp_path / "a.parquet": [1, 2, 3],
    }
    for file, lines in files.items():
        found = rows_of(file)
        assert [r.value for r in found] == expected, file
        assert [r.line for r in found] == lines, file


def test_parquet_and_csv_hold_conversations(write: Write, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    lists = [CHAT, {"messages": [*CHAT["messages"], {"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]}]
    parquet.write_table(pa.Table.from_pylist(lists), tmp_path / "a.parquet")
    assert [r.value["weights"] for r in rows_of(tmp_path / "a.parquet")] == [[0, 1], [0, 1, 0, 0]]
    text = io.StringIO()
    table = csv.DictWriter(text, ["messages", "tools"])
    table.writeheader()
    table.writerow({"messages": json.dumps(CHAT["messages"]), "tools": json.dumps([tool])})
    (row,) = rows_of(write("a.csv", text.getvalue()))
    assert row.value["messages"] == CHAT["messages"]
    assert row.value["tools"] == [tool]


def test_weight_tools_and_older_names_follow_openai(write: Write) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    row = {
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "weather "}, {"type": "text", "text": "in Zagreb?"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "w", "arguments": '{"city": "Zagreb"}'}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            {"role": "assistant", "content": "Sunny.", "weight": 0.5},
            {"role": "user", "content": "and Split?"},
            {"role": "assistant", "content": None, "function_call": {"name": "w", "arguments": ""}, "weight": 0},
            {"role": "function", "name": "w", "content": "rain"},
            {"role": "assistant", "content": "Rain."},
        ],
        "functions": [{"name": "w", "parameters": parameters}],
        "parallel_tool_calls": False,
        "unknown": 1,
    }
    (found,) = rows_of(write("a.jsonl", [row]))
    messages = found.value["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool", "assistant"]
    assert messages[1]["content"] == "weather in Zagreb?"
    assert messages[2]["tool_calls"] == [{"id": "c1", "type": "function", "function": {"name": "w", "arguments": {"city": "Zagreb"}}}]
    assert messages[6]["tool_calls"] == [{"type": "function", "function": {"name": "w", "arguments": {}}}]
    assert found.value["weights"] == [0, 0, 1, 0, 0.5, 0, 0, 0, 1]
    assert found.value["tools"] == [{"type": "function", "function": {"name": "w", "parameters": parameters}}]


def test_prompt_and_completion_may_be_lists_of_messages(write: Write) -> None:
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    (row,) = rows_of(write("a.jsonl", [{"prompt": prompt, "completion": [{"role": "assistant", "content": "d"}]}]))
    assert row.kind == "chat"
    assert row.value["weights"] == [0, 0, 0, 1]  # only the completion is learned


def test_a_null_column_counts_as_absent(write: Write) -> None:
    (row,) = rows_of(write("a.jsonl", [{"messages": None, "prompt": None, "text": "words"}]))
    assert row.kind == "text"


# ---- refused ----


def chat(*messages: Any) -> dict[str, Any]:
    return {"messages": [{"role": r, "content": c} if isinstance(c, str) else {"role": r, **c} for r, c in messages]}


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown role": (chat(("user", "a"), ("asistant", "b")), "message 2 has the unknown role 'asistant'; did you mean `assistant`?"),
    "ShareGPT's role": (chat(("human", "a"), ("assistant", "b")), "did you mean `user`?"),
    "no role": ({"messages": [{"from": "human", "value": "a"}]}, "message 1 has no `role` (it has `from`, `value`)"),
    "no messages": ({"messages": []}, "`messages` must be a list of messages, this is empty"),
    "messages are text": ({"messages": "hello"}, "this is text"),
    "a message is text": ({"messages": ["hello"]}, "message 1 is text, not an object"),
    "no answer": (chat(("user", "a")), "the last message must be the assistant's answer, this is the user's"),
    "ends with the user": (chat(("user", "a"), ("assistant", "b"), ("user", "c")), "the last message must be the assistant's answer"),
    "assistant first": (chat(("assistant", "a")), "begin with a user message"),
    "tool without call": (chat(("user", "a"), ("tool", "b"), ("assistant", "c")), "no assistant message with `tool_calls` comes before"),
    "empty answer": (chat(("user", "a"), ("assistant", " \n")), "message 2: the assistant's text is empty"),
    "null answer": (chat(("user", "a"), ("assistant", {"content": None})), "the assistant's text is empty"),
    "null question": (chat(("user", {"content": None}), ("assistant", "b")), "message 1: `content` is missing"),
    "number as content": (chat(("user", {"content": 3}), ("assistant", "b")), "`content` must be text, this is a number"),
    "image": (chat(("user", {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}), ("assistant", "b")), "not 'image_url'"),
    "nothing supervised": (chat(("user", "a"), ("assistant", {"content": "b", "weight": 0})), "no supervised token"),
    "weight above one": (chat(("user", "a"), ("assistant", {"content": "b", "weight": 2})), "`weight` must be a number from 0"),
    "weight is true": (chat(("user", "a"), ("assistant", {"content": "b", "weight": True})), "`weight` must be a number"),
    "weight on the user": (chat(("user", {"content": "a", "weight": 1}), ("assistant", "b")), "only the assistant's messages are learned"),
    "arguments are no JSON": (
        chat(("user", "a"), ("assistant", {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]})),
        "the arguments of `f` are not valid JSON",
    ),
    "arguments are a list": (
        chat(("user", "a"), ("assistant", {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]})),
        "not a JSON object",
    ),
    "wrong call id": (
        chat(
            ("user", "a"),
            ("assistant", {"content": None, "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]}),
            ("tool", {"content": "b", "tool_call_id": "c2"}),
            ("assistant", "c"),
        ),
        "answers the tool call 'c2', which was not made",
    ),
    "tools are no list": ({**CHAT, "tools": {"name": "f"}}, "`tools` must be a list"),
    "tool without a name": ({**CHAT, "tools": [{"type": "function"}]}, "tool 1 is not"),
    "missing column": (
        {"mesages": []},
        "missing column: the row has `mesages`; it needs `messages`, `prompt` and `completion`, `tokens` and `tags`, or `text`; rename `mesages` to `messages`?",
    ),
    "another tool's column": ({"question": "a", "response": "b"}, "rename `question` to `prompt`?"),
    "missing completion": (
        {"prompt": "a", "answer": "b"},
        "missing column `completion`: a row with `prompt` needs both; rename `answer` to `completion`?",
    ),
    "empty completion": ({"prompt": "a", "completion": ""}, "`completion` is empty"),
    "empty prompt": ({"prompt": "", "completion": "b"}, "`prompt` is empty"),
    "empty text": ({"text": "  "}, "`text` is empty"),
    "null": ({"text": None}, "`text` is null"),
    "text is a number": ({"text": 3}, "`text` must be text, not int"),
    "lone surrogate": ({"text": "\ud800"}, "half a character (\\ud800, a lone surrogate)"),
    "surrogate in a tool": ({**CHAT, "tools": [{"type": "function", "function": {"name": "f", "x": {"\udfff": 1}}}]}, "half a character"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_row_is_refused_by_line_with_the_mend(write: Write, case: str) -> None:
    row, message = REFUSED[case]
    good = CHAT if "messages" in row or "mesages" in row else {"prompt": "a", "completion": "b"} if "prompt" in row else {"text": "a"}
    file = write("a.jsonl", f"{json.dumps(good)}\n\n{json.dumps(row)}\n{json.dumps(good)}\n")
    assert message in refusal(file, 3)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ('{"messages": [}', "not valid JSON (expecting value at column 15)"),
        ('{"text": "a"', "not valid JSON"),
        ('{"text": NaN}', "NaN is not JSON"),
        ('{"text": "a", "text": "b"}', "the key 'text' is there twice"),
        ("[" * 100_000, "nested too deep"),
        ('{"text": ' + "1" * 5000 + "}", "not valid JSON"),
        ("[1]", "a row is a JSON object, this is a list"),
        ("null", "a row is a JSON object, this is null"),
        ("{'text': 'a'}", "not valid JSON"),
    ],
)
def test_broken_json_on_line_n(write: Write, broken: str, message: str) -> None:
    assert message in refusal(write("a.jsonl", f"{LINE}\n{LINE}\n{broken}\n{LINE}\n"), 3)


def test_not_utf8_names_line_and_byte(write: Write) -> None:
    text = refusal(write("a.jsonl", LINE.encode() + b'\n{"text": "caf\xe9"}\n'), 2)
    assert "byte 0xe9 at position 14 of the line is not UTF-8" in text
    assert "it looks like UTF-16" in refusal(write("b.jsonl", LINE.encode("utf-16")), 1)
    assert "not UTF-8" in refusal(write("c.csv", b"text\ncaf\xe9\n"), 2)
    assert "not UTF-8" in refusal(write("d.json", b'[\n{"text": "caf\xe9"}]'), 2)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"], ids=["no bytes", "blank lines", "a BOM"])
def test_an_empty_file_is_refused(write: Write, name: str, content: bytes) -> None:
    assert "no rows" in refusal(write(name, content), None)


def test_a_table_without_rows_is_refused(write: Write) -> None:
    assert "no rows" in refusal(write("a.csv", "text\n"), None)
    assert "no rows" in refusal(write("a.json", "[]"), None)


def test_two_kinds_in_one_file_are_refused_naming_both_lines(write: Write) -> None:
    text = refusal(write("a.jsonl", [CHAT, CHAT, {"text": "b"}]), 3)
    assert "this is a text row, but line 1 is a chat row" in text


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("title,body\na,b\n", 1, "missing column: the header has title, body"),
        ("prompt,x\na,b\n", 2, "missing column `completion`"),
        ("text,text\na,b\n", 1, "the column `text` is there twice"),
        ("prompt,completion\na,b\na\n", 3, "this row has 1 fields, the header has 2"),
        ('text\na\n"b\nc', 3, "not valid CSV"),
        ('messages\n"[{""role"": }]"\n', 2, "the column `messages` is not valid JSON"),
        ("messages\n{}\n", 2, "a list is needed"),
    ],
)
def test_wrong_csv(write: Write, content: str, line: int, message: str) -> None:
    assert message in refusal(write("a.csv", content), line)


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ('[{"text": "a"},\n{"text": }]', 2, "not valid JSON"),
        ('[{"text": "a"}\n{"text": "b"}]', 2, "a comma is missing"),
        ('[{"text": "a"},\n]', 2, "a comma before the closing bracket"),
        ('[{"text": "a"}', 1, "the array is not closed"),
        ('[{"text": "a"}]\nx', 1, "more text after the array"),
        ('[{"text": "a"},\n 3]', 2, "this is a number"),
        ('[{"text": "a"}, {"text": "b", "text": "c"}]', 1, "is there twice"),
        ('{\n "text": "a"\n}', 1, "not valid JSON"),
    ],
)
def test_wrong_array(write: Write, content: str, line: int, message: str) -> None:
    assert message in refusal(write("a.json", content), line)


def test_wrong_parquet(write: Write, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    assert "not a readable Parquet file" in refusal(write("a.parquet", b"PAR1 no, it is not"), None)
    parquet.write_table(pa.table({"title": ["a"]}), tmp_path / "b.parquet")
    assert "missing column: it has title" in refusal(tmp_path / "b.parquet", None)
    parquet.write_table(pa.table({"text": ["a", None]}), tmp_path / "c.parquet")
    assert "`text` is null" in refusal(tmp_path / "c.parquet", 2)
    parquet.write_table(pa.table({"text": [b"\xff"]}), tmp_path / "d.parquet")
    assert "`text` must be text" in refusal(tmp_path / "d.parquet", 1)


def test_a_file_that_is_not_there_names_the_nearest(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", LINE)
    assert f"did you mean `{tmp_path / 'train.jsonl'}`?" in refusal(tmp_path / "trian.jsonl", None)
    assert "this is a folder" in refusal(tmp_path, None)
    assert "the form `.docx` is not known" in refusal(write("a.docx", "x"), None)


@pytest.mark.parametrize("source", ["", "\0", "x" * 5000 + ".jsonl", "a\0b.jsonl"])
def test_a_name_that_is_no_name(source: str) -> None:
    with pytest.raises(DataError):
        list(read_rows(source))


def test_paths_are_relative_to_the_base(write: Write, tmp_path: Path) -> None:
    write("a.jsonl", LINE)
    (row,) = read_rows("a.jsonl", base=tmp_path)
    assert row.source == str(tmp_path / "a.jsonl")


def test_on_problem_hears_of_all_and_the_good_rows_remain(write: Write) -> None:
    problems: list[DataError] = []
    file = write("a.jsonl", f'{LINE}\n{{\n{LINE}\n{{"text": "a"}}\n{{"messages": []}}\n{LINE}\n')
    rows = list(read_rows(str(file), on_problem=problems.append))
    assert [r.line for r in rows] == [1, 3, 6]
    assert [p.line for p in problems] == [2, 4, 5]


def test_files_are_read_as_a_stream(tmp_path: Path) -> None:
    """The first row comes although the file's end is broken, and a line too long to be a row is not loaded."""
    file = tmp_path / "a.jsonl"
    with file.open("wb") as f:
        f.write(LINE.encode() + b"\n")
        f.seek(200 * 2**20)
        f.write(b"\n" + LINE.encode())
    rows = read_rows(str(file))
    assert next(rows).line == 1
    with pytest.raises(DataError, match="longer than 64 MiB"):
        next(rows)
    problems: list[DataError] = []
    assert [r.line for r in read_rows(str(file), on_problem=problems.append)] == [1, 3]


# ---- nothing but a DataError, whatever the bytes ----

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["user", "assistant", "tool", "system", "text"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "weight", "tool_calls", "function", "name", "arguments", "type", "text", "id"])
            | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "tool", "x"]),
            "content": st.text(st.characters(), max_size=5) | json_values,
        },
        optional={"tool_calls": json_values, "weight": json_values, "function_call": json_values, "tool_call_id": json_values},
    ),
    max_size=4,
)
raw_rows = st.fixed_dictionaries(
    {},
    optional={
        "messages": messages | json_values,
        "tools": json_values,
        "functions": json_values,
        "prompt": messages | json_values,
        "completion": messages | json_values,
        "text": json_values,
    },
)


def assert_only_data_errors(file: Path) -> None:
    problems: list[DataError] = []
    for row in read_rows(str(file), on_problem=problems.append):
        json.dumps(row.value, ensure_ascii=False).encode("utf-8")  # whatever is accepted can be tokenised
    for problem in problems:
        assert str(problem).startswith(str(file))
        assert problem.source == str(file)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(raw_rows, max_size=3), st.sampled_from(["a.jsonl", "a.json"]))
def test_any_json_is_read_or_refused(tmp_path: Path, rows: list[Any], name: str) -> None:
    file = tmp_path / name
    file.write_text(json.dumps(rows) if name == "a.json" else "\n".join(json.dumps(r) for r in rows))
    assert_only_data_errors(file)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200) | st.text(string.printable + '{}[]":,\x00é\u2028', max_size=200).map(str.encode),
    st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet"]),
    st.sampled_from([b"", b"text\n", b"[", b'{"text": ', b"\xef\xbb\xbf", b"PAR1"]),
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, form: str, start: bytes) -> None:
    file = tmp_path / f"a.{form}"
    file.write_bytes(start + content)
    assert_only_data_errors(file)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_any_damage_to_a_parquet_file_is_refused_or_read(tmp_path: Path, at: int, damage: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["one", "two"] * 20}), file)
    content = bytearray(file.read_bytes())
    at %= len(content)
    content[at : at + len(damage)] = damage
    file.write_bytes(content)
    assert_only_data_errors(file)
