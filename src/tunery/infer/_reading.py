"""Many rows read in one go: what they begin with in common is computed once, nothing is padded, and keys and values are kept.

reader = Reader(model)
read = reader.read([Wanted(tokens, positions), ...])
read.hidden[read.at[n]]        # what the output layer is given at the wanted positions of row n
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from tunery.errors import RunError
from tunery.infer._shared_attention import Beginning, KeysValues, ReadingCache
from tunery.train import _tile_attention
from tunery.train.forward import Head, can_pack
from tunery.train.packs import Pack, pack

READ_TOKENS = 512
"""Tokens of one forward pass, where rows allow it: products reach their full speed well below."""
ROWS, TOKENS = 256, 16_384
"""Rows answered together, at most, and rows × (longest + new tokens) beside the shared beginning: 0.4 GB of keys and values in bfloat16
for a 135M model (30 layers, 3 × 64 key and value values). Twice as many rows take a tenth less time for 400 headlines, more take no less."""
FAMILY = 64
"""Tokens that rows must share more than with their neighbours to be read apart from those, as where several system prompts are."""


@dataclass(frozen=True)
class Wanted:
    """A row: its `tokens` (T,), and the `positions` whose hidden states are wanted."""

    tokens: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class _Row:
    tokens: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Read:
    """What was read: `hidden` (U, width) states, each place once; `at[n]` where row n's wanted ones are in it.

    `beginning` is what all rows share. Of its other tokens row n has the places `paths[n]` in pack `packs[n]`, whose keys and values
    are `layers[packs[n]]`.
    """

    hidden: torch.Tensor
    at: list[np.ndarray]
    beginning: Beginning
    layers: list[KeysValues]
    packs: list[int]
    paths: list[np.ndarray]


class Reader:
    """Reads rows with one model. Between two readings the shared beginning is kept, as far as the next rows have it too."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers = int(model.config.get_text_config().num_hidden_layers)
        self.output = model.get_output_embeddings()
        self.head = Head(self.output, model.config.get_text_config())
        self.by_tiles = _by_tiles(model)
        self._beginning = Beginning(np.empty(0, np.int64), [])

    def read(self, rows: Sequence[Wanted]) -> Read:
        """The wanted states of the rows, and all keys and values, to go on from."""
        beginning = self._begin(rows)
        count = len(beginning)
        at: list[Any] = [None] * len(rows)
        packs, paths, hidden = [0] * len(rows), list(at), []
        layers: list[KeysValues] = []
        start = 0
        for packed in _packs([row.tokens[count:] for row in rows]):
            states, kept = self._states(packed, beginning)
            borders = np.flatnonzero(np.diff(packed.rows)) + 1
            numbers = packed.rows[np.concatenate([[0], borders])]
            own = dict(zip(numbers.tolist(), np.split(packed.source, borders), strict=True))
            for n, path in own.items():
                packs[n], paths[n] = len(layers), path
            wanted = [path[rows[n].positions - count] for n, path in own.items()]
            places, inverse = np.unique(np.concatenate(wanted), return_inverse=True)
            for n, part in zip(own, np.split(inverse + start, np.cumsum([len(w) for w in wanted])[:-1]), strict=True):
                at[n] = part
            hidden.append(states[torch.from_numpy(places).to(states.device)])
            layers.append(kept)
            start += len(places)
        return Read(torch.cat(hidden), at, beginning, layers, packs, paths)

    def logits(self, hidden: torch.Tensor, rows: int = 128) -> Iterator[tuple[slice, torch.Tensor]]:
        """(which states, their logits (n, vocabulary) in float32), some at a time, so that few exist at once."""
        for start in range(0, len(hidden), rows):
            part = slice(start, min(start + rows, len(hidden)))
            yield part, self.head(hidden[part]).float()

    def _begin(self, rows: Sequence[Wanted]) -> Beginning:
        """The shared beginning of these rows, read as far as it was not yet. It ends before the first wanted position."""
        first, last = (f((r.tokens for r in rows), key=_order) for f in (min, max))
        shared = min(_common(first, last), *(int(r.positions.min()) for r in rows))
        old = _common(self._beginning.tokens, first[:shared])
        begin = self._beginning.first(old)
        if shared > old and sum(len(r.tokens) - shared for r in rows) + shared - old > READ_TOKENS:  # else one pass takes everything
            (packed,) = _packs([first[old:shared]])
            _, kept = self._states(packed, begin)
            begin = begin.then(first[old:shared], kept)
        self._beginning = begin
        return begin

    def _states(self, packed: Pack, beginning: Beginning) -> tuple[torch.Tensor, KeysValues]:
        """(T, width) what the output layer would be given for each token of a pack, and the keys and values."""
        model, held = self.model, []

        def hold(head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            held.append(inputs[0])
            return (inputs[0][:, :1].clone(memory_format=torch.contiguous_format),)  # one position, to compare with

        cache = ReadingCache(self.layers, beginning, packed, model.device, self.by_tiles)
        hook = self.output.register_forward_pre_hook(hold)
        try:
            with cache.attended():
                out = model(
                    input_ids=torch.from_numpy(packed.tokens)[None].to(model.device),
                    position_ids=torch.from_numpy(packed.positions + len(beginning))[None].to(model.device),
                    past_key_values=cache,
                    use_cache=True,
                )
        finally:
            hook.remove()
        states = held[0][0]
        if model not in _compared:
            if not torch.allclose(self.head(states[:1]).float(), out.logits[0].float(), atol=1e-3, rtol=1e-3):
                raise RunError(
                    f"{model.__class__.__name__} changes its logits in a way that is not known here; please report this architecture"
                )
            _compared.add(model)
        return states, cache.kept


def _by_tiles(model: Any) -> bool:
    """Whether a kernel takes this model's attention that skips what a mask hides, whatever the shape."""
    config = model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return _tile_attention.possible(torch.empty(1, 1, 1, head, dtype=model.dtype, device=model.device))


_compared: WeakSet[torch.nn.Module] = WeakSet()
"""Models whose own logits were seen to be what `Head` makes."""


def able(model: Any, longest: int) -> bool:
    """Whether rows of up to `longest` tokens, answers included, can be read and answered so with the same results as one by one.

    Not where a method puts virtual tokens before each row, where a layer is recurrent, where layers share keys or have attention sinks,
    where attention is not called through transformers' registry, and where the rotary frequencies depend on the longest row at hand.
    """
    config = model.config.get_text_config()
    if getattr(model, "rows_apart", False) or getattr(model, "virtual_tokens", 0) or not can_pack(model.config):
        return False
    if getattr(config, "num_kv_shared_layers", None) or not model._can_set_attn_implementation() or model.config.is_encoder_decoder:
        return False
    if any(hasattr(module, "sinks") for module in model.modules()):
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(v for v in rope.values() if isinstance(v, dict))]
    if not any(k.get("rope_type") in ("dynamic", "longrope") for k in kinds):
        return True
    lengths = [k["original_max_position_embeddings"] for k in kinds if k.get("original_max_position_embeddings")]
    own = getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
    return bool(longest <= min(lengths, default=own))


def together(prompts: Sequence[np.ndarray], new_tokens: int) -> Iterator[list[int]]:
    """Numbers of prompts to read and answer together: neighbours in the order of their tokens, so that they share much."""
    rows: list[int] = []
    shared = longest = 0
    for n in sorted(range(len(prompts)), key=lambda n: _order(prompts[n])):
        common = _common(prompts[rows[0]], prompts[n]) if rows else len(prompts[n])
        width = max(longest, len(prompts[n])) - min(shared, common)
        full = len(rows) == ROWS or (len(rows) + 1) * (width + new_tokens) > TOKENS
        if rows and (full or (len(rows) >= 8 and shared - common > FAMILY)):
            yield rows
            rows, common, longest = [], len(prompts[n]), 0
        shared = min(shared, common) if rows else common
        longest = max(longest, len(prompts[n]))
        rows.append(n)
    if rows:
        yield rows


def _packs(rows: Sequence[np.ndarray]) -> Iterator[Pack]:
    """Prefix trees in which every token's place is known: each is asked for the next one, the last for any."""
    return pack((_Row(np.append(row, 0), np.ones(len(row) + 1, np.float32)) for row in rows), READ_TOKENS)


def _order(tokens: np.ndarray) -> bytes:
    return np.asarray(tokens).astype(">u4").tobytes()  # big-endian bytes sort like the token ids


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens both begin with."""
    n = min(len(a), len(b))
    differing = np.flatnonzero(a[:n] != b[:n])
    return int(differing[0]) if len(differing) else n
