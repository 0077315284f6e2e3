"""From rows to tokens, with the weight of learning each.

What is learned of a chat: from the first token after the generation prompt through the end-of-turn token. The ids of the
prompt are exactly those that serving sends (the text tokenised alone, without further special tokens: the template brings
its own BOS), so training and serving cannot drift apart. Where tokenising the whole conversation would merge the end of a
prompt with the beginning of the reply (a reply that begins with a line break), the reply is tokenised apart.

A tokenizer splits text at its added tokens before anything else and treats the pieces alone; so whether a prompt's ids
begin the whole's ids is decided by the piece after the prompt's last added token, a few tokens long and nearly always the
same text. That saves tokenising every prompt twice.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from tunery.data.content import conversation
from tunery.data.rows import Row
from tunery.data.template import ChatTemplate, Rendered, Turn, reason
from tunery.errors import DataError, InputError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerFast

VERSION = 1
"""Raised whenever the same row would give other tokens or weights, so that what was cached is not used again."""


@dataclass(frozen=True)
class Sequence:
    """Tokens to learn from: `tokens` (T,) int32 ids, `weights` (T,) float32; weights[t] is the weight of predicting tokens[t], 0 where
    it is not learned (always at t = 0, before which there is nothing).

    `marks` (T,) int32 is what a task reads beside the tokens, and then weights[t] is the weight of what is learned at t itself: the
    number of the class for a head (-1 where there is none), the side of a preference pair (0, then 1)."""

    tokens: np.ndarray
    weights: np.ndarray
    marks: np.ndarray | None = None

    def cut(self, length: int, tail: int = 0) -> Sequence:
        """At most `length` tokens: the first ones, and of a longer sequence the last `tail` of them are its own last ones."""
        if len(self.tokens) <= length:
            return self
        parts = slice(None, length - tail), slice(len(self.tokens) - tail, None)

        def short(array: np.ndarray) -> np.ndarray:
            import numpy as np

            return np.concatenate([array[part] for part in parts])

        return Sequence(short(self.tokens), short(self.weights), None if self.marks is None else short(self.marks))


@dataclass(frozen=True)
class Prompt:
    """What is sent to the model for a row's last answer, and the answer that is right.

    `messages` are those before the answer; None when the model has no chat template.
    """

    ids: list[int]
    reference: str
    messages: list[dict[str, Any]] | None


class Renderer:
    """Rows to tokens by one model's tokenizer and chat template.

    Raises InputError when the tokenizer or its template cannot serve, DataError when a row cannot be rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._plain()
        self._added = set(tokenizer.added_tokens_decoder)
        self._tail_ids = lru_cache(maxsize=4096)(lambda text: tuple(self._encode(text)[0]))

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer)

    def sequences(self, row: Row) -> list[Sequence]:
        """The row as one sequence, or one for each learned turn where the template rewrites history."""
        (found,) = self.batch([row])
        if isinstance(found, DataError):
            raise found
        return found

    def batch(self, rows: Many[Row]) -> list[list[Sequence] | DataError]:
        """`sequences` of many rows at once, tokenised in parallel; a row's own problem stands in its place."""
        plans: list[list[Rendered] | DataError] = []
        for row in rows:
            try:
                plans.append(self._plan(row))
            except DataError as e:
                plans.append(e)
        self._plain()
        texts = [r.text for plan in plans if not isinstance(plan, DataError) for r in plan]
        encodings = iter(self._backend.encode_batch(texts, add_special_tokens=False))
        found: list[list[Sequence] | DataError] = []
        for row, plan in zip(rows, plans, strict=True):
            if isinstance(plan, DataError):
                found.append(plan)
                continue
            parts = [(r, next(encodings)) for r in plan]
            try:
                found.append([s for r, e in parts for s in self._tokens(row, r, e.ids, [start for start, _ in e.offsets])])
            except DataError as e:
                found.append(e)
        return found

    def prompt(self, row: Row) -> Prompt:
        """The prompt of the row's last answer. The reference is the answer's text; of a tool call, what the template writes for it."""
        if row.kind == "text":
            raise InputError(f"{row.source}:{row.line}: a text row asks nothing, so it has no prompt; evaluate it by its loss")
        if row.kind == "completion" and not self.tokenizer.chat_template:
            return Prompt(self._bos_then(self._encode(row.value["prompt"])[0]), row.value["completion"], None)
        messages = conversation(row)
        tools = row.value.get("tools")
        answer = messages[-1]
        try:
            text = self.template.prompt(messages[:-1], tools)
            reference = answer["content"]
            if answer.get("tool_calls"):
                whole = self.template.whole(messages, tools)
                turn = self.template.turn(row, answer, text, whole, 1.0)
                reference = whole[turn.start : turn.words]
        except (DataError, InputError):
            raise
        except Exception as e:
            raise DataError(
                row.source, row.line, f"the model's chat template refuses this conversation ({reason(e)}); mend the roles and their order"
            ) from None
        return Prompt(self._encode(text)[0], reference, messages[:-1])

    def prompt_of(self, messages: Many[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """The ids that ask for the answer after these messages."""
        template = self.template
        try:
            text = template.prompt(messages, tools)
        except Exception as e:
            raise InputError(f"the model's chat template refuses this conversation ({reason(e)}); mend the roles and their order") from None
        return self._encode(text)[0]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: the template's end of turn first, then the tokenizer's end token."""
        ids = []
        if self.tokenizer.chat_template and self.template.end_of_turn is not None:
            ids.append(self._backend.token_to_id(self.template.end_of_turn))
        if self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        if not ids:
            raise InputError(
                "neither the tokenizer nor its template has an end token, so no answer could stop; set `eos_token` in tokenizer_config.json"
            )
        return tuple(dict.fromkeys(int(i) for i in ids))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides which tokens a row gives."""
        self._plain()
        parts = [
            VERSION,
            self._backend.to_str(),
            self.tokenizer.chat_template,
            {k: str(v) for k, v in self.tokenizer.special_tokens_map.items()},
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()

    def _plan(self, row: Row) -> list[Rendered]:
        if row.kind == "chat":
            return self.template.render(row)
        if row.kind == "completion":
            if self.tokenizer.chat_template:
                return self.template.render(Row("chat", {"messages": conversation(row), "weights": [0.0, 1.0]}, row.source, row.line))
            prompt, text = row.value["prompt"], row.value["prompt"] + row.value["completion"]
            return [Rendered(text, (Turn(len(prompt), len(text), len(text), 1.0),), bos=True, eos=True)]
        if row.kind != "text":
            raise DataError(row.source, row.line, f"the recipe's task does not take {row.kind} rows; change the task or the data")
        text = row.value["text"]
        return [Rendered(text, (Turn(0, len(text), len(text), 1.0),), bos=True, eos=self.tokenizer.eos_token_id is not None)]

    def _tokens(self, row: Row, rendered: Rendered, ids: list[int], starts: list[int]) -> list[Sequence]:
        import numpy as np

        last = rendered.turns[-1]
        begin = self._prompt_length(ids, starts, rendered.text, last.start)
        if begin is None:
            ids, starts, begin = self._apart(row, rendered.text, last.start, ids)
        begins = [self._prompt_length(ids, starts, rendered.text, t.start) for t in rendered.turns[:-1]] + [begin]
        if None in begins:  # an earlier answer cannot stand in this sequence and still follow the prompt that serving sends
            one_each = [Rendered(rendered.text[: t.end], (t,)) for t in rendered.turns]
            return [s for r in one_each for s in self._tokens(row, r, *self._encode(r.text))]
        weights = np.zeros(len(ids), dtype=np.float32)
        for turn, first in zip(rendered.turns, begins, strict=True):
            weights[first : bisect_left(starts, turn.end)] = turn.weight
        before = self._bos_then([]) if rendered.bos else []
        if before and ids[: len(before)] == before:
            before = []
        after: list[int] = []
        if rendered.eos:
            if self.tokenizer.eos_token_id is None:
                raise InputError("the tokenizer has no end token, so an answer could never stop; set `eos_token` in tokenizer_config.json")
            after = [] if ids and ids[-1] == self.tokenizer.eos_token_id else [self.tokenizer.eos_token_id]
        tokens = np.array([*before, *ids, *after], dtype=np.int32)
        weights = np.concatenate([np.zeros(len(before), np.float32), weights, np.full(len(after), last.weight, np.float32)])
        weights[:1] = 0
        if not weights.any():
            raise DataError(
                row.source, row.line, "no supervised token: the row is too short for anything to be learned; write more text or remove it"
            )
        return [Sequence(tokens, weights)]

    def _prompt_length(self, ids: list[int], starts: list[int], text: str, end: int) -> int | None:
        """How many of the ids are exactly those of the prompt `text[:end]`; None when tokenising the whole merged over its end."""
        at = bisect_left(starts, end) - 1
        while at >= 0 and ids[at] not in self._added:
            at -= 1
        begin = starts[at] if at >= 0 else 0
        expected = self._tail_ids(text[begin:end]) if end - begin < 200 else tuple(self._encode(text[begin:end])[0])
        at = max(at, 0)
        return at + len(expected) if tuple(ids[at : at + len(expected)]) == expected else None

    def _apart(self, row: Row, text: str, at: int, whole: list[int]) -> tuple[list[int], list[int], int]:
        """The text's ids with the prompt `text[:at]` tokenised alone, as serving does, and the rest after it."""
        ids, starts = self._encode(text[:at])
        begin = len(ids)
        rest, rest_starts = self._continued(text[at:])
        ids, starts = ids + rest, starts + [s + at for s in rest_starts]
        if self._backend.decode(ids, skip_special_tokens=False) != self._backend.decode(whole, skip_special_tokens=False):
            raise DataError(
                row.source,
                row.line,
                "the tokenizer cannot divide this row between its prompt and its answer; begin the answer with a letter or a digit",
            )
        return ids, starts, begin

    def _continued(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of text that follows other text: a tokenizer that marks the beginning of a text with a space must not do so here."""
        if self._anchor is None:
            return self._encode(text)
        anchor, anchor_id = self._anchor
        ids, starts = self._encode(anchor + text)
        if ids[:1] != [anchor_id]:
            return self._encode(text)
        return ids[1:], [s - len(anchor) for s in starts[1:]]

    @cached_property
    def _anchor(self) -> tuple[str, int] | None:
        tokens = self.tokenizer.added_tokens_decoder.items()
        return next(((t.content, i) for i, t in tokens if t.special and not t.rstrip and not t.normalized), None)

    @cached_property
    def _beginning(self) -> list[int]:
        """What the tokenizer puts before every text (most: nothing, or BOS)."""
        self._plain()
        probe = self._backend.encode("a", add_special_tokens=False).ids
        ids = self._backend.encode("a", add_special_tokens=True).ids
        at = next((n for n in range(len(ids)) if ids[n : n + len(probe)] == probe), 0)
        return list(ids[:at])

    def _bos_then(self, ids: list[int]) -> list[int]:
        begin = self._beginning
        return ids if ids[: len(begin)] == begin else begin + ids

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        self._plain()
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def _plain(self) -> None:
        """Cutting and padding off: tokenizer.json may ask for them, and other callers of the same tokenizer may have switched them on."""
        self._backend.no_truncation()
        self._backend.no_padding()
