"""Talking to a model: one answer, or a conversation on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tunery.errors import InputError
from tunery.infer.stream_text import stream_text

if TYPE_CHECKING:
    from rich.console import Console

    from tunery.data.render import Renderer
    from tunery.infer.engine import Engine
    from tunery.infer.sampling import Sampling

HELP = "/reset begins anew, /system TEXT sets the system prompt (alone: removes it), /exit or Ctrl-D leaves, Ctrl-C stops an answer"
ROOM = 64
"""New tokens that must fit into the context before another answer is tried: less would cut nearly every answer."""

Messages = list[dict[str, Any]]


def answer_once(engine: Engine, renderer: Renderer, message: str, system: str | None, sampling: Sampling) -> Iterator[str]:
    """The answer to one message, in pieces of text as they come. A model without a chat template continues the message.

    Raises InputError when the prompt does not fit or the template refuses the system prompt.
    """
    yield from stream_text(engine.stream(_prompt(renderer, [*_opening(system), _said("user", message)]), sampling), engine.tokenizer)


def chat_loop(
    engine: Engine,
    renderer: Renderer,
    system: str | None,
    sampling: Sampling,
    console: Console,
    read_line: Callable[[str], str] | None = None,
) -> None:
    """A conversation until `/exit` or the end of input. Each turn is rendered anew by the template that the model was trained with.

    `read_line` shows a prompt and returns a line; it ends with EOFError. A conversation that no longer fits into the context begins anew
    with the last message, which is said. An answer that Ctrl-C stopped stays in the conversation as far as it came.
    """
    if not renderer.tokenizer.chat_template:
        raise InputError("this model has no chat template, so it holds no conversation; let it continue a text with -m")
    read_line = read_line or terminal_line
    history = _opening(system)
    note(console, HELP)
    while True:
        try:
            line = read_line("> ").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            note(console, "\nCtrl-D leaves")
            continue
        if not line:
            continue
        if line.startswith("/"):
            command, _, rest = line.partition(" ")
            if command in ("/exit", "/quit"):
                return
            if command == "/reset":
                history = _opening(system)
                note(console, "the conversation begins anew")
            elif command == "/system":
                system = rest.strip() or None
                history = _opening(system)
                note(
                    console,
                    "the conversation begins anew with this system prompt"
                    if system
                    else "the conversation begins anew without a system prompt",
                )
            else:
                note(console, f"{command} is not known; {HELP}")
            continue
        history = _turn(engine, renderer, history, system, line, sampling, console)


def _turn(
    engine: Engine, renderer: Renderer, history: Messages, system: str | None, line: str, sampling: Sampling, console: Console
) -> Messages:
    """The conversation after this message and its answer; as it was before when nothing was answered."""
    asked = [*history, _said("user", line)]
    needed = min(ROOM, sampling.max_new_tokens)
    count, pieces = 0, []
    try:
        prompt = _prompt(renderer, asked)
        if len(prompt) + needed > engine.context and len(history) > len(_opening(system)):
            note(
                console,
                f"the conversation has filled the model's context of {engine.context} tokens; it begins anew with your last message",
            )
            history = _opening(system)
            asked = [*history, _said("user", line)]
            prompt = _prompt(renderer, asked)
        if len(prompt) + needed > engine.context:
            note(console, f"this message has {len(prompt)} tokens, too many for the model's context of {engine.context}; shorten it")
            return history

        def counted() -> Iterator[int]:
            nonlocal count
            for token in engine.stream(prompt, sampling):
                count += 1
                yield token

        for piece in stream_text(counted(), engine.tokenizer):
            pieces.append(piece)
            console.print(piece, end="", markup=False, highlight=False, emoji=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print()
        note(console, "stopped")
    except InputError as e:
        note(console, str(e))
        return history
    else:
        console.print()
        if len(prompt) + count >= engine.context:
            note(console, f"cut: the model's context of {engine.context} tokens is full")
        elif count >= sampling.max_new_tokens:
            note(console, f"cut after {count} tokens; --max-new-tokens allows more")
    answer = "".join(pieces)
    return [*asked, _said("assistant", answer)] if answer.strip() else history


def _prompt(renderer: Renderer, messages: Messages) -> list[int]:
    if renderer.tokenizer.chat_template:
        return renderer.prompt_of(messages)
    if len(messages) > 1:
        raise InputError("this model has no chat template, so it knows no system prompt; leave --system out")
    from tunery.data.rows import Row

    return renderer.prompt(Row("completion", {"prompt": messages[0]["content"], "completion": ""}, "message", 1)).ids


def _opening(system: str | None) -> Messages:
    return [_said("system", system)] if system else []


def _said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def note(console: Console, text: str) -> None:
    """Tunery's own words, told apart from the model's."""
    console.print(text, style="dim", markup=False, highlight=False, emoji=False, soft_wrap=True)


def terminal_line(prompt: str) -> str:
    with suppress(ImportError):
        import readline  # noqa: F401  gives input() a history and editing keys
    return input(prompt)
