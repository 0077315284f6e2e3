from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from chat_families import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery.data.render import Renderer, Sequence
from tunery.data.rows import Row
from tunery.data.validate import validate
from tunery.errors import DataError, InputError

Make = Callable[[str], Renderer]

CHAT_FAMILIES = ["smollm2", "tools", "llama3", "phi3", "qwen3", "alpaca"]

TURNS = [("user", "What is it?"), ("assistant", "A cat."), ("user", "And this?"), ("assistant", "A small house.")]

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}


def chat(*turns: tuple[str, str], weights: list[float] | None = None, **more: Any) -> Row:
    messages: list[dict[str, Any]] = [{"role": r, "content": c} for r, c in turns]
    for message, weight in zip(messages, weights or [], strict=False):
        message["weight"] = weight
    return Row(*validate({"messages": messages, **more}), source="a.jsonl", line=7)


def learned(renderer: Renderer, sequence: Sequence) -> list[str]:
    """The learned stretches of a sequence as text."""
    on = np.concatenate([[0], (sequence.weights > 0).astype(int), [0]])
    starts, ends = np.flatnonzero(np.diff(on) == 1), np.flatnonzero(np.diff(on) == -1)
    decode = renderer.tokenizer.backend_tokenizer.decode
    return [decode(sequence.tokens[a:b].tolist(), skip_special_tokens=False) for a, b in zip(starts, ends, strict=True)]


LEARNED = {
    "smollm2": [["A cat.<|im_end|>", "A small house.<|im_end|>"]],
    "tools": [["A cat.<|im_end|>", "A small house.<|im_end|>"]],
    "llama3": [["A cat.<|eot_id|>", "A small house.<|eot_id|>"]],
    "phi3": [["A cat.<|end|>", "A small house.<|end|>"]],
    "qwen3": [["<think>\n\n</think>\n\nA cat.<|im_end|>"], ["<think>\n\n</think>\n\nA small house.<|im_end|>"]],
    "alpaca": [["A cat.<|endoftext|>"], ["A small house.<|endoftext|>"]],
}


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_what_is_learned_is_the_answer_through_its_end_of_turn(renderer: Make, family: str) -> None:
    r = renderer(family)
    assert [learned(r, s) for s in r.sequences(chat(*TURNS))] == LEARNED[family]


@pytest.mark.parametrize("family", ["smollm2", "tools", "llama3"])
def test_the_tokens_are_the_templates_own(renderer: Make, family: str) -> None:
    r = renderer(family)
    row = chat(*TURNS)
    (sequence,) = r.sequences(row)
    assert sequence.tokens.tolist() == r.tokenizer.apply_chat_template(row.value["messages"], tokenize=True, return_dict=False)
    assert sequence.tokens.dtype == np.int32
    assert sequence.weights.dtype == np.float32
    assert sequence.weights.shape == sequence.tokens.shape


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_the_prompt_is_what_serving_sends_and_begins_the_sequence(renderer: Make, family: str) -> None:
    r = renderer(family)
    row = chat(*TURNS)
    prompt = r.prompt(row)
    messages = row.value["messages"][:-1]
    assert prompt.ids == r.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert prompt.ids == r.prompt_of(messages)
    assert prompt.reference == "A small house."
    assert prompt.messages == messages
    last = r.sequences(row)[-1]
    assert last.tokens[: len(prompt.ids)].tolist() == prompt.ids
    assert last.weights[len(prompt.ids)] == 1


def test_a_system_turn_that_the_template_adds_is_there_and_not_learned(renderer: Make) -> None:
    r = renderer("smollm2")
    (without,) = r.sequences(chat(("user", "a"), ("assistant", "b")))
    text = r.tokenizer.decode(without.tokens)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert learned(r, without) == ["b<|im_end|>"]
    (own,) = r.sequences(chat(("system", "Be brief."), ("user", "a"), ("assistant", "b")))
    assert "SmolLM" not in r.tokenizer.decode(own.tokens)
    assert learned(r, own) == ["b<|im_end|>"]


def test_never_a_second_bos(renderer: Make) -> None:
    for family in ("llama3", "base-bos"):
        r = renderer(family)
        bos = r.tokenizer.bos_token_id
        rows = [Row("text", {"text": "the cat"}, "a", 1), Row("text", {"text": f"{r.tokenizer.bos_token}the cat"}, "a", 1)]
        rows += [Row("completion", {"prompt": "the cat", "completion": " sees"}, "a", 1)]
        rows += [chat(*TURNS)] if family == "llama3" else []
        for row in rows:
            (sequence,) = r.sequences(row)
            assert sequence.tokens[0] == bos
            assert (sequence.tokens == bos).sum() == 1
            if row.kind != "text":
                assert r.prompt(row).ids.count(bos) == 1


def test_weight_zero_is_not_learned_and_half_is_half(renderer: Make) -> None:
    r = renderer("smollm2")
    (sequence,) = r.sequences(chat(*TURNS, weights=[0, 0, 0, 0.5]))
    assert learned(r, sequence) == ["A small house.<|im_end|>"]
    assert set(sequence.weights.tolist()) == {0.0, 0.5}
    (sequence,) = r.sequences(chat(*TURNS, weights=[0, 1, 0, 0]))
    assert learned(r, sequence) == ["A cat.<|im_end|>"]


def test_history_that_the_template_rewrites_gives_a_sequence_a_turn(renderer: Make) -> None:
    r = renderer("qwen3")
    row = chat(("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), ("user", "c"), ("assistant", "<think>\nso\n</think>\n\nd"))
    first, second = r.sequences(row)
    assert learned(r, first) == ["<think>\nhm\n</think>\n\nb<|im_end|>"]
    assert learned(r, second) == ["<think>\nso\n</think>\n\nd<|im_end|>"]
    assert "hm" not in r.tokenizer.decode(second.tokens)  # as serving will show it


def test_tools_and_tool_calls_are_rendered_and_learned(renderer: Make) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zagreb"}'}}
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sun", "tool_call_id": "c"},
        {"role": "assistant", "content": "No."},
    ]
    r = renderer("tools")
    (sequence,) = r.sequences(Row(*validate({"messages": messages, "tools": [TOOL]}), source="a", line=1))
    written = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zagreb"}}\n</tool_call>'
    assert learned(r, sequence) == [f"{written}<|im_end|>", "No.<|im_end|>"]
    assert '"parameters"' in r.tokenizer.decode(sequence.tokens)
    asked = r.prompt(Row(*validate({"messages": messages[:2], "tools": [TOOL]}), source="a", line=1))
    assert asked.reference == written
    with pytest.raises(DataError, match=r"a:1: the model's chat template does not write tool calls, so `weather` would be lost"):
        renderer("smollm2").sequences(Row(*validate({"messages": messages}), source="a", line=1))
    with pytest.raises(DataError, match="does not show the tool `weather`"):
        renderer("smollm2").sequences(chat(*TURNS, tools=[TOOL]))


def test_an_answer_that_holds_the_end_token_ends_at_the_last(renderer: Make) -> None:
    r = renderer("smollm2")
    (sequence,) = r.sequences(chat(("user", "a"), ("assistant", "b<|im_end|>\nc<|im_end|>")))
    assert learned(r, sequence) == ["b<|im_end|>\nc<|im_end|><|im_end|>"]


def test_prompt_and_completion_are_a_chat_where_there_is_a_template(renderer: Make) -> None:
    r = renderer("smollm2")
    row = Row("completion", {"prompt": "a", "completion": "b"}, "a", 1)
    (sequence,) = r.sequences(row)
    (same,) = r.sequences(chat(("user", "a"), ("assistant", "b")))
    assert sequence.tokens.tolist() == same.tokens.tolist()
    assert sequence.weights.tolist() == same.weights.tolist()
    assert r.prompt(row).messages == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("family", ["base", "base-bos"])
def test_prompt_and_completion_without_a_template(renderer: Make, family: str) -> None:
    r = renderer(family)
    row = Row("completion", {"prompt": "The cat", "completion": " sees a river."}, "a", 1)
    (sequence,) = r.sequences(row)
    assert learned(r, sequence) == [" sees a river.<|endoftext|>"]
    prompt = r.prompt(row)
    assert prompt.ids == r.tokenizer("The cat").input_ids
    assert sequence.tokens[: len(prompt.ids)].tolist() == prompt.ids
    assert prompt.messages is None


@pytest.mark.parametrize("family", ["base", "base-bos", "smollm2"])
def test_all_of_a_text_is_learned_but_what_nothing_precedes(renderer: Make, family: str) -> None:
    r = renderer(family)
    (sequence,) = r.sequences(Row("text", {"text": "The cat sees a river."}, "a", 1))
    assert sequence.tokens.tolist() == [*r.tokenizer("The cat sees a river.").input_ids, r.tokenizer.eos_token_id]
    assert sequence.weights.tolist() == [0.0] + [1.0] * (len(sequence.tokens) - 1)
    (ended,) = r.sequences(Row("text", {"text": f"The cat{r.tokenizer.eos_token}"}, "a", 1))
    assert (ended.tokens == r.tokenizer.eos_token_id).sum() == 1


@pytest.mark.parametrize(
    ("family", "stops"),
    [
        ("smollm2", ["<|im_end|>"]),
        ("llama3", ["<|eot_id|>"]),
        ("phi3", ["<|end|>", "</s>"]),
        ("alpaca", ["<|endoftext|>"]),
        ("base", ["<|endoftext|>"]),
    ],
)
def test_stop_ids_hold_the_end_of_turn_and_the_end_token(renderer: Make, family: str, stops: list[str]) -> None:
    r = renderer(family)
    assert r.tokenizer.convert_ids_to_tokens(list(r.stop_ids)) == stops


def test_every_learned_answer_ends_with_a_stop_id(renderer: Make) -> None:
    for family in CHAT_FAMILIES:
        r = renderer(family)
        for sequence in r.sequences(chat(*TURNS)):
            last = int(np.flatnonzero(sequence.weights)[-1])
            assert sequence.tokens[last] in r.stop_ids


# ---- what cannot be ----


def broken(template: str | None, eos: bool = True) -> Renderer:
    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    if not eos:
        tokenizer.eos_token = None
    return Renderer(tokenizer)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the model has no chat template"),
        ("{% for m in messages %}{{ m.nothing.at_all }}{% endfor %}", "cannot render a plain conversation"),
        ("{{ messages[0].content }}", "leaves out the assistant's text"),
        (
            "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}",
            "asks for an answer with",
        ),
    ],
)
def test_a_template_that_cannot_serve_is_no_rows_fault(template: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        broken(template).sequences(chat(*TURNS))
    assert not isinstance(caught.value, DataError)


def test_without_any_end_token_nothing_could_stop() -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    with pytest.raises(InputError, match="set `eos_token`"):
        broken(template, eos=False).sequences(chat(*TURNS))
    with pytest.raises(InputError, match="set `eos_token`"):
        _ = broken(template, eos=False).stop_ids


def test_a_conversation_that_the_template_refuses_is_refused_by_line(renderer: Make) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:7: the model's chat template refuses this conversation \(Only user and assistant roles"):
        renderer("alpaca").sequences(chat(("system", "x"), *TURNS))


def test_a_batch_keeps_the_good_rows_and_says_which_is_bad(renderer: Make) -> None:
    good, bad = chat(*TURNS), chat(("system", "x"), *TURNS)
    first, second, third = renderer("alpaca").batch([good, bad, good])
    assert isinstance(second, DataError)
    assert isinstance(first, list)
    assert isinstance(third, list)
    assert [s.tokens.tolist() for s in first] == [s.tokens.tolist() for s in third]


def test_padding_or_cutting_that_the_tokenizer_was_left_with_changes_nothing(renderer: Make) -> None:
    r = renderer("smollm2")
    (expected,) = r.sequences(chat(*TURNS))
    r.tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=2)
    (found,) = r.sequences(chat(*TURNS))
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert len(r.prompt(chat(*TURNS)).ids) > 2


def test_the_fingerprint_changes_with_template_and_tokenizer(renderer: Make) -> None:
    prints = {f: renderer(f).fingerprint for f in CHAT_FAMILIES}
    assert len(set(prints.values())) == len(prints)
    assert renderer("smollm2").fingerprint == prints["smollm2"]
    assert broken("{{ 1 }}").fingerprint != prints["smollm2"]


# ---- training and serving agree, whatever is said ----

words = st.text(st.sampled_from(list("\n\n \t  ab.é日😀<|>▁\u00a0\u2028")) | st.characters(exclude_categories=["Cs"]), max_size=12)
special = st.sampled_from(["<|im_end|>", "<|eot_id|>", "<|end|>", "<|assistant|>\n", "<s>", "</think>", "### Response:\n"])
said = st.one_of(words, st.builds(lambda a, b, c: a + b + c, words, special, words))
# White space at the beginning of an answer is what merges with the end of a prompt.
blanks = st.sampled_from(["", "\n", "\n\n", "\n\n\n", " ", "  ", "\n \n", "\t\n", " \n\n", "\u00a0", ":\n"])
answers = st.builds(lambda a, b, c: a + b + c, blanks, words, st.sampled_from(["x", " y", "\nz", "0"]))
pairs = st.lists(st.tuples(said, answers), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("family", CHAT_FAMILIES)
@given(turns=pairs)
def test_every_learned_answer_follows_exactly_the_prompt_that_serving_sends(family: str, turns: list[tuple[str, str]]) -> None:
    tokenizer = make_tokenizer(family)
    r = Renderer(tokenizer)
    row = chat(*[turn for question, answer in turns for turn in (("user", question), ("assistant", answer))])
    messages = row.value["messages"]
    sequences = r.sequences(row)
    prompts = [
        tokenizer.apply_chat_template(messages[:k], add_generation_prompt=True, tokenize=True, return_dict=False)
        for k in range(1, len(messages), 2)
    ]
    assert r.prompt(row).ids == prompts[-1]
    # Each prompt begins a sequence, and where it ends learning begins.
    for prompt in prompts:
        holders = [
            s
            for s in sequences
            if s.tokens[: len(prompt)].tolist() == prompt and len(s.tokens) > len(prompt) and s.weights[len(prompt)] == 1
        ]
        assert holders, (tokenizer.decode(prompt), [tokenizer.decode(s.tokens) for s in sequences])
        assert holders[0].weights[len(prompt) - 1] == 0
    # Each answer is learned once: as many learned stretches as turns, each ending with a stop token.
    ends = [int(n) for s in sequences for n in np.flatnonzero(np.diff(np.append(s.weights, 0)) < 0)]
    assert len(ends) == len(turns)
    if family != "phi3":  # its role tokens swallow white space, in serving as well
        for s in sequences:
            whole = tokenizer.backend_tokenizer.decode(s.tokens.tolist(), skip_special_tokens=False)
            rendered = [tokenizer.apply_chat_template(messages[:k], tokenize=False) for k in range(2, len(messages) + 1, 2)]
            if family == "alpaca":
                assert any(text.startswith(whole.removesuffix("<|endoftext|>")) for text in rendered)
            else:
                assert any(text.startswith(whole) for text in rendered)


@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("family", ["base", "base-bos", "base-metaspace"])
@given(prompt=st.builds(lambda a, b: a + b, words, blanks).filter(str.strip), completion=answers)
def test_completions_follow_their_prompt(family: str, prompt: str, completion: str) -> None:
    r = Renderer(make_tokenizer(family))
    row = Row("completion", {"prompt": prompt, "completion": completion}, "a", 1)
    (sequence,) = r.sequences(row)
    ids = r.prompt(row).ids
    assert ids == r.tokenizer(prompt).input_ids
    assert sequence.tokens[: len(ids)].tolist() == ids
    assert sequence.weights.tolist() == [0.0] * len(ids) + [1.0] * (len(sequence.tokens) - len(ids))
    begin = 1 if family == "base-bos" else 0
    backend = r.tokenizer.backend_tokenizer
    whole = backend.encode(prompt + completion, add_special_tokens=False).ids
    decoded = backend.decode(sequence.tokens[begin:-1].tolist(), skip_special_tokens=False)
    assert decoded == backend.decode(whole, skip_special_tokens=False)
    if family != "base-metaspace":  # which cannot tell whether a text begins with a space
        assert decoded == prompt + completion
