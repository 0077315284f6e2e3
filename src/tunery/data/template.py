"""The model's own chat template: what it writes for a conversation, and which part of that the assistant says.

Marks inside templates (`{% generation %}`) are rare and often wrong, so nothing is read out of the template's code.
The assistant's k-th turn is found by rendering twice: the conversation before it with the generation prompt, and the
conversation through it. The second must begin with the first; the rest is the reply. A reply ends with the end-of-turn
token, which a probe conversation shows; what the template writes after that belongs to no one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunery.data.rows import Row
from tunery.errors import DataError, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages = Sequence[dict[str, Any]]

_ASKED = "What does the probe say?"
_ANSWERED = "The probe says hello."


@dataclass(frozen=True)
class Turn:
    """A learned stretch of a rendered text, in characters: the reply from `start`, its words to `words`, its end-of-turn token to `end`."""

    start: int
    words: int
    end: int
    weight: float


@dataclass(frozen=True)
class Rendered:
    """One text to tokenise. `bos`: the tokenizer's own beginning is put before it; `eos`: the end token is put after it and learned."""

    text: str
    turns: tuple[Turn, ...]
    bos: bool = False
    eos: bool = False


class ChatTemplate:
    """A tokenizer's chat template. Raises InputError when it cannot be used for training at all."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if not tokenizer.chat_template:
            raise InputError(
                "the model has no chat template, so it cannot learn `messages`; use `prompt` and `completion`, `text`, or an instruct model"
            )
        self.tokenizer = tokenizer
        tokens = [t for t in tokenizer.added_tokens_decoder.values() if t.content.strip()]
        self._added = sorted((t.content for t in tokens), key=len, reverse=True)
        self._special = {t.content for t in tokens if t.special} | {str(t) for t in (tokenizer.eos_token,) if t}

    def prompt(self, messages: Messages, tools: list[dict[str, Any]] | None = None) -> str:
        """The text that asks for the next answer. Raises whatever the template raises."""
        return str(self.tokenizer.apply_chat_template(list(messages), tools=tools or None, tokenize=False, add_generation_prompt=True))

    def whole(self, messages: Messages, tools: list[dict[str, Any]] | None = None) -> str:
        """The text of the conversation as it stands. Raises whatever the template raises."""
        return str(self.tokenizer.apply_chat_template(list(messages), tools=tools or None, tokenize=False, add_generation_prompt=False))

    @cached_property
    def tail(self) -> str:
        """What the template writes after an answer: the end-of-turn token, if it has one, and what follows it."""
        probe: list[dict[str, Any]] = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}]
        try:
            prompt, whole = self.prompt(probe[:-1]), self.whole(probe)
        except Exception:  # some templates insist on a system message
            probe.insert(0, {"role": "system", "content": "You are a probe."})
            try:
                prompt, whole = self.prompt(probe[:-1]), self.whole(probe)
            except Exception as e:
                raise InputError(
                    f"the model's chat template cannot render a plain conversation ({reason(e)}); mend it in the tokenizer's folder"
                ) from None
        at = whole.rfind(_ANSWERED)
        if at < 0:
            raise InputError("the model's chat template leaves out the assistant's text; mend the template in the tokenizer's folder")
        if not whole.startswith(prompt):
            raise InputError(
                f"the model's chat template asks for an answer with {prompt[-40:]!r} but writes answers differently, "
                "so what is trained would not be what is served; "
                "mend its add_generation_prompt part"
            )
        return whole[at + len(_ANSWERED) :]

    @cached_property
    def end_of_turn(self) -> str | None:
        """The token with which an answer ends, or None when the template writes none (the tokenizer's end token is then used)."""
        found = [(at, -len(t), t) for t in self._added if (at := self.tail.find(t)) >= 0]
        return min(found)[2] if found else None

    def render(self, row: Row) -> list[Rendered]:
        """What to learn from a chat row: one text with all its turns, so that each is learned once.

        When the template rewrites history (thinking removed from earlier turns), or writes no end of turn, one text a
        turn is the only form in which each answer stands after exactly the prompt that serving sends.
        Raises DataError when the template does not render this conversation, InputError when it serves for none.
        """
        messages, weights, tools = row.value["messages"], row.value["weights"], row.value.get("tools")
        last = len(messages) - 1
        learned = [k for k, w in enumerate(weights) if w > 0]
        end_of_turn = self.end_of_turn  # first: what is wrong with the template is not the row's fault
        try:
            whole = self.whole(messages, tools)
            texts = [(k, self.prompt(messages[:k], tools), whole if k == last else self.whole(messages[: k + 1], tools)) for k in learned]
        except Exception as e:  # a template may raise anything
            raise DataError(
                row.source, row.line, f"the model's chat template refuses this conversation ({reason(e)}); mend the roles and their order"
            ) from None
        turns, single = [], []
        together = end_of_turn is not None
        for k, prompt, full in texts:
            turn = self.turn(row, messages[k], prompt, full, weights[k])
            turns.append(turn)
            single.append(Rendered(full[: turn.end] if end_of_turn is None else full, (turn,), eos=end_of_turn is None))
            together = together and whole.startswith(full[: turn.end])
        if tools:
            _check_tools(row, texts[0][1], tools)
        return [Rendered(whole, tuple(turns))] if together else single

    def turn(self, row: Row, message: dict[str, Any], prompt: str, full: str, weight: float) -> Turn:
        """Where the reply stands in `full`, the conversation through `message`. Raises DataError when it cannot be learned."""
        if not full.startswith(prompt):
            raise DataError(
                row.source,
                row.line,
                "the model's chat template does not continue its own prompt in this conversation; mend the row's roles, or the template",
            )
        reply = full[len(prompt) :]
        for call in message.get("tool_calls", ()):
            if call["function"]["name"] not in reply:
                name = call["function"]["name"][:40]
                raise DataError(
                    row.source,
                    row.line,
                    f"the model's chat template does not write tool calls, so `{name}` would be lost; choose a model made for tools",
                )
        if self.end_of_turn is None:
            end = len(full) - len(self.tail) if self.tail and full.endswith(self.tail) else len(full)
            return Turn(len(prompt), end, end, weight)
        if reply.endswith(self.tail):
            words = len(full) - len(self.tail) + self.tail.index(self.end_of_turn)
            return Turn(len(prompt), words, words + len(self.end_of_turn), weight)
        words, token = self._last_tokens(reply)
        if token is None:
            raise DataError(
                row.source,
                row.line,
                "the model's chat template writes no end-of-turn token after this answer, so it would not learn to stop; mend the template",
            )
        return Turn(len(prompt), len(prompt) + words, len(prompt) + words + len(token), weight)

    def _last_tokens(self, reply: str) -> tuple[int, str | None]:
        """Where the reply's closing run of special tokens has its end of turn (a tool call may end differently from an answer)."""
        found: list[tuple[int, str]] = []
        rest = reply.rstrip()
        while token := next((t for t in self._added if (t in self._special or t == self.end_of_turn) and rest.endswith(t)), None):
            rest = rest[: -len(token)]
            found.append((len(rest), token))
            rest = rest.rstrip()
        if not found:
            return 0, None
        return next((f for f in reversed(found) if f[1] == self.end_of_turn), found[0])


def _check_tools(row: Row, prompt: str, tools: list[dict[str, Any]]) -> None:
    lost = next((t["function"]["name"] for t in tools if t["function"]["name"] not in prompt), None)
    if lost is not None:
        raise DataError(
            row.source,
            row.line,
            f"the model's chat template does not show the tool `{lost[:40]}` to the model; choose one made for tools, or remove `tools`",
        )


def reason(error: Exception) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [error.__class__.__name__])[0][:160]
