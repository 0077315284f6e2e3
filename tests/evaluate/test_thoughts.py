"""A model whose template writes `<think>` before every answer is measured by its answers, unless the rows show thinking."""

from __future__ import annotations

import pytest
from chat_families import make_tokenizer

from tunery.data.render import Renderer
from tunery.data.rows import Row
from tunery.evaluate.by_answer import SLACK, _answer, _room, without_thought


@pytest.mark.parametrize(
    ("said", "expected", "found"),
    [
        ("<think>\n\n</think>\n\nyes", "yes", "yes"),
        ("<think>\nhm, <b>\nso\n</think>yes", "yes", "yes"),
        ("\n<think></think>\nyes", "yes", "yes"),
        ("<think>\nhm\n</think>\n\nyes", "<think>\nso\n</think>\n\nyes", "<think>\nhm\n</think>\n\nyes"),
        ("<think>\nhm, I never end", "yes", "<think>\nhm, I never end"),
        ("yes <think>no</think>", "yes", "yes <think>no</think>"),
        ("<think>a</think><think>b</think>c", "c", "<think>b</think>c"),
        ("yes", "yes", "yes"),
    ],
)
def test_thinking_that_no_row_asks_for_is_no_part_of_the_answer(said: str, expected: str, found: str) -> None:
    assert without_thought(said, expected) == found


def test_what_a_thinking_template_makes_a_model_write_counts_as_the_answer() -> None:
    """The learned reply itself, as an engine would give it back, is the reference; and there is room to write all of it."""
    tokenizer = make_tokenizer("qwen3")
    renderer = Renderer(tokenizer)
    row = Row(
        "chat", {"messages": [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "yes"}], "weights": [0.0, 1.0]}, "a", 1
    )
    (sequence,) = renderer.sequences(row)
    learned = sequence.tokens[sequence.weights > 0].tolist()
    assert tokenizer.decode(learned).startswith("<think>")
    prompt = renderer.prompt(row)
    line = _answer(renderer, prompt, learned[:-1])  # the stop token is not given back
    assert line["prediction"] == line["reference"] == "yes"
    assert _room(renderer, [prompt]) >= len(learned)
    assert _room(renderer, [prompt]) == len(tokenizer("yes", add_special_tokens=False).input_ids) + SLACK
