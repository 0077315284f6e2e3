from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import tiny_tokenizer

from tunery.cli.chat_loop import answer_once, chat_loop
from tunery.data.render import Renderer
from tunery.errors import InputError
from tunery.infer.sampling import Sampling

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class Scripted:
    """An engine that gives prepared answers, and keeps what it was asked. An answer may be stopped by Ctrl-C after some tokens."""

    name = "scripted"
    stop_ids: tuple[int, ...] = (2,)

    def __init__(self, answers: list[str], context: int = 1024, interrupt_after: int | None = None) -> None:
        self.tokenizer: Any = tiny_tokenizer()
        self.answers, self.context, self.interrupt_after = iter(answers), context, interrupt_after
        self.asked: list[str] = []

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        self.asked.append(self.tokenizer.decode(prompt))
        ids = self.tokenizer(next(self.answers), add_special_tokens=False).input_ids
        for n, token in enumerate(ids[: min(sampling.max_new_tokens, self.context - len(prompt))]):
            if n == self.interrupt_after:
                self.interrupt_after = None
                raise KeyboardInterrupt
            yield token

    def generate(self, *_: Any) -> Any:
        raise AssertionError("a conversation streams")

    logits = generate


def typed(*lines: str | type[BaseException]) -> Callable[[str], str]:
    """A keyboard: each line in turn, an exception where one is given, then the end of input."""
    left = iter(lines)

    def read_line(prompt: str) -> str:
        line = next(left, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read_line


def talk(engine: Scripted, *lines: str | type[BaseException], system: str | None = None, **sampling: Any) -> str:
    shown = io.StringIO()
    console = Console(file=shown, width=40, highlight=False)
    chat_loop(engine, Renderer(engine.tokenizer), system, Sampling(**sampling), console, typed(*lines))
    return shown.getvalue()


def turns(*said: str, system: str = SYSTEM) -> str:
    """The prompt that the template writes for these turns of user and assistant."""
    text = f"<|im_start|>system\n{system}<|im_end|>\n"
    for n, words in enumerate(said):
        text += f"<|im_start|>{('user', 'assistant')[n % 2]}\n{words}<|im_end|>\n"
    return text + "<|im_start|>assistant\n"


def test_each_turn_holds_the_whole_conversation_as_the_template_writes_it() -> None:
    engine = Scripted(["the cat", "a river"])
    shown = talk(engine, "Who?", "  ", "And then?")
    assert engine.asked == [turns("Who?"), turns("Who?", "the cat", "And then?")]
    assert "the cat\n" in shown
    assert "a river\n" in shown


def test_the_answer_is_shown_as_it_is() -> None:
    answer = "[bold]no markup[/bold] :smile: and a line that is much longer than the console is wide, 日本語 too\n\n  end"
    assert answer in talk(Scripted([answer]), "Hi")


def test_commands() -> None:
    engine = Scripted(["one", "two", "three", "four"])
    shown = talk(engine, "A", "/reset", "B", "/system Be brief.", "C", "/system", "D", "/nonsense", "/exit", "E", system="Be kind.")
    assert engine.asked == [
        turns("A", system="Be kind."),
        turns("B", system="Be kind."),
        turns("C", system="Be brief."),
        turns("D"),
    ]
    assert "/nonsense is not known; /reset" in shown


def test_ctrl_c_stops_the_answer_and_keeps_what_came() -> None:
    engine = Scripted(["the cat likes a long book", "more"], interrupt_after=3)
    shown = talk(engine, "A", "B")
    kept = engine.tokenizer.decode(engine.tokenizer("the cat likes a long book").input_ids[:3])
    assert engine.asked[1] == turns("A", kept, "B")
    assert f"{kept}\nstopped\n" in shown


def test_ctrl_c_before_the_first_token_leaves_the_conversation_as_it_was() -> None:
    engine = Scripted(["lost", "yes"], interrupt_after=0)
    talk(engine, "A", "B")
    assert engine.asked[1] == turns("B")


def test_ctrl_c_at_the_prompt_says_how_to_leave_and_ctrl_d_leaves() -> None:
    shown = talk(Scripted(["yes"]), KeyboardInterrupt, "A", EOFError, "never read")
    assert "Ctrl-D leaves" in shown
    assert "yes" in shown


def test_a_conversation_that_fills_the_context_begins_anew_with_the_last_message() -> None:
    first = len(tiny_tokenizer()(turns("A")).input_ids)
    engine = Scripted(["yes " * 60, "no", "maybe"], context=first + 130)
    shown = talk(engine, "A", "B", "C", max_new_tokens=100)
    assert engine.asked == [turns("A"), turns("B"), turns("B", "no", "C")]
    assert f"filled the model's context of {first + 130} tokens" in shown


def test_a_message_that_is_too_long_alone_is_not_sent() -> None:
    engine = Scripted(["yes"], context=120)
    shown = talk(engine, "no " * 100, "short", max_new_tokens=20)
    assert engine.asked == [turns("short")]
    assert "too many for the model's context of 120; shorten it" in shown


def test_a_cut_answer_is_said() -> None:
    assert "cut after 5 tokens; --max-new-tokens allows more" in talk(Scripted(["yes no " * 10]), "A", max_new_tokens=5)
    assert "cut" not in talk(Scripted(["yes"]), "A", max_new_tokens=5)
    assert "context of 110 tokens is full" in talk(Scripted(["yes no " * 50], context=110), "A", max_new_tokens=200)


def test_what_the_template_refuses_is_said_and_forgotten() -> None:
    engine = Scripted(["yes"])
    engine.tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompt here') }}{% endif %}" + (
        engine.tokenizer.chat_template
    )
    shown = talk(engine, "A", "/system", "B", system="Be kind.")
    assert "no system prompt here" in shown
    assert len(engine.asked) == 1
    assert "B<|im_end|>" in engine.asked[0]


def test_answer_once() -> None:
    engine = Scripted(["a 🙂 b", "c"])
    renderer = Renderer(engine.tokenizer)
    pieces = list(answer_once(engine, renderer, "Hi", None, Sampling()))
    assert "".join(pieces) == "a 🙂 b"
    assert len(pieces) > 2
    assert "".join(answer_once(engine, renderer, "Hi", "Be kind.", Sampling())) == "c"
    assert engine.asked == [turns("Hi"), turns("Hi", system="Be kind.")]


def test_a_model_without_a_template_continues_one_text_and_holds_no_conversation() -> None:
    engine = Scripted([" likes"])
    engine.tokenizer.chat_template = None
    renderer = Renderer(engine.tokenizer)
    assert "".join(answer_once(engine, renderer, "the cat", None, Sampling())) == " likes"
    assert engine.asked == ["the cat"]
    with pytest.raises(InputError, match="knows no system prompt"):
        list(answer_once(engine, renderer, "the cat", "Be kind.", Sampling()))
    with pytest.raises(InputError, match="no chat template"):
        talk(engine, "A")


@pytest.mark.real
def test_the_real_model_remembers_a_turn(smollm2: Path) -> None:
    from tunery.infer.torch_engine import TorchEngine
    from tunery.models.load import load_model, load_tokenizer

    tokenizer = load_tokenizer(smollm2)
    renderer = Renderer(tokenizer)
    engine = TorchEngine(load_model(smollm2), tokenizer, renderer.stop_ids)
    shown = io.StringIO()
    lines = typed("My name is Marjan. Greet me by name.", "What is my name?")
    chat_loop(engine, renderer, None, Sampling(max_new_tokens=30), Console(file=shown, width=200), lines)
    assert shown.getvalue().rpartition("\n")[0].count("Marjan") >= 2
