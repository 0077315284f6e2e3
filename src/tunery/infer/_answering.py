"""Answers to many prompts at once, token by token: rows that have ended are dropped, keys and values of the shared beginning exist once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tunery.infer._reading import Read, Reader
from tunery.infer._shared_attention import AnsweringCache, KeysValues

Draw = Callable[[torch.Tensor], torch.Tensor]
"""From logits (R, vocabulary) to the chosen token of each row (R,)."""


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row, the first of equals. In bfloat16 `max` takes a quarter of the time of `argmax`."""
    return logits.max(-1).indices


@dataclass
class Answer:
    """An answer on its way: `row` and the first `length` of its tokens as they were read, the tokens chosen after the prompt (of which
    the last was not read), and how many there may be."""

    row: int
    length: int
    tokens: list[int]
    limit: int


def begin(reader: Reader, read: Read, prompts: Sequence[tuple[int, int]], draw: Draw, stop_ids: tuple[int, ...]) -> list[Answer]:
    """The first token of each answer, after prompts that were read as rows 0, 1, ...: (length, limit) of each. One that stops at once is
    empty and has no room for more."""
    at = torch.tensor([places[-1] for places in read.at[: len(prompts)]], device=read.hidden.device)
    chosen = torch.cat([draw(logits) for _, logits in reader.logits(read.hidden[at])]).tolist()
    found = []
    for n, ((length, limit), token) in enumerate(zip(prompts, chosen, strict=True)):
        found.append(Answer(n, length, [], 0) if token in stop_ids else Answer(n, length, [token], limit))
    return found


def go_on(reader: Reader, read: Read, answers: Sequence[Answer], draw: Draw, stop_ids: tuple[int, ...]) -> None:
    """Add to each answer's tokens until a stop token, which is left out, or its limit."""
    going = [a for a in answers if len(a.tokens) < a.limit]
    if not going:
        return
    cache = _cache(read, going)
    device = cache.lengths.device
    while True:
        ids = torch.tensor([[a.tokens[-1]] for a in going], device=device)
        with cache.attended():
            out = reader.model(input_ids=ids, position_ids=cache.positions[:, None], past_key_values=cache, use_cache=True)
        chosen = draw(out.logits[:, -1]).tolist()
        cache.steps += 1
        kept = []
        for n, (answer, token) in enumerate(zip(going, chosen, strict=True)):
            if token in stop_ids:
                continue
            answer.tokens.append(token)
            if len(answer.tokens) < answer.limit:
                kept.append(n)
        if not kept:
            return
        if len(kept) < len(going):
            cache.keep(torch.tensor(kept, device=device))
            going = [going[n] for n in kept]


def _cache(read: Read, answers: Sequence[Answer]) -> AnsweringCache:
    """Each row's own keys and values, right-aligned, with room for the new ones."""
    count = len(read.beginning)
    lengths = [a.length - count for a in answers]
    width, new = max(lengths), max(a.limit - len(a.tokens) for a in answers)
    starts = [0]
    for layers in read.layers:
        starts.append(starts[-1] + layers[0][0].shape[1])
    device = read.hidden.device
    places = torch.zeros(len(answers), width, dtype=torch.long)
    for n, (answer, length) in enumerate(zip(answers, lengths, strict=True)):
        places[n, width - length :] = torch.from_numpy(read.paths[answer.row][:length] + starts[read.packs[answer.row]])
    flat = places.ravel().to(device)
    own: KeysValues = []
    for layer in range(len(read.layers[0])):
        pair = []
        of_layer = [torch.cat(parts, 1) for parts in zip(*(layers[layer] for layers in read.layers), strict=True)]
        able = AnsweringCache.able(*of_layer)
        for whole in of_layer if able else [x.float() for x in of_layer]:
            store = whole.new_empty(len(whole), len(answers), width + new, whole.shape[-1])
            store[:, :, :width] = whole.index_select(1, flat).view(len(whole), len(answers), width, -1)
            pair.append(store)
        own.append((pair[0], pair[1]))
    return AnsweringCache(read.beginning, own, torch.tensor(lengths, device=device), width)
