"""Attention over keys in two parts, through transformers' own seams: a beginning that all rows share, and what each has for itself.

    with seen_by(model):                      # the model's attention is the one below
        cache = ReadingCache(beginning, pack)     # many rows' tokens in one sequence, laid out as a prefix tree
        cache = AnsweringCache(beginning, ...)    # one new token a row
        model(..., past_key_values=cache)

The keys and values of the beginning exist once, whatever the number of rows. Scores against them are one product for all rows, scores
against a row's own keys are small ones, and both go through one softmax: the sum is the ordinary attention. Each architecture's own rule
(causal, sliding window, chunks) is asked for positions within the row, as in `train.attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tunery.kernels import library
from tunery.train import attention as packed_attention
from tunery.train.packs import Pack

NAME = "tunery_shared"
DENSE_BEGINNING = 256
"""Tokens of a shared beginning from which reading uses torch's fused kernel over everything: it skips nothing, but writes no scores."""

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]
"""For each layer keys and values, (key-value heads, T, d)."""
Rule = Callable[..., torch.Tensor]

_now: ContextVar[ReadingCache | AnsweringCache] = ContextVar("cache")


@dataclass(frozen=True)
class Beginning:
    """What rows begin with in common: `tokens` (P,), and for each layer their keys and values."""

    tokens: np.ndarray
    layers: KeysValues

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, count: int) -> Beginning:
        return Beginning(self.tokens[:count], [(k[:, :count], v[:, :count]) for k, v in self.layers] if count else [])

    def then(self, tokens: np.ndarray, layers: KeysValues) -> Beginning:
        if len(self):
            layers = [(torch.cat([k, k2], 1), torch.cat([v, v2], 1)) for (k, v), (k2, v2) in zip(self.layers, layers, strict=True)]
        return Beginning(np.concatenate([self.tokens, tokens]), layers)


class _OwnCache(Cache):
    """What transformers asks of a cache: lengths that only its own masks would need are those of an empty one."""

    def __init__(self, layers: int, beginning: Beginning) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(layers)])
        self.beginning = beginning

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Within this block a forward pass sees this cache."""
        token = _now.set(self)  # type: ignore[arg-type]
        try:
            yield
        finally:
            _now.reset(token)

    def _joint(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, cap: float | None
    ) -> torch.Tensor:
        """query: (key-value heads, B, heads of each, n, d), scaled; key and value: (key-value heads, B, L, d), all in float32;
        mask: (B, 1, n, P + L), added → (key-value heads, B, heads of each, n, d of the values).
        """
        groups, blocks, shared, n, d = query.shape
        scores = query.reshape(groups, blocks, shared * n, d) @ key.transpose(-1, -2)
        count = len(self.beginning)
        if count:
            k, v = (x.float() for x in self.beginning.layers[layer])
            before = query.reshape(groups, blocks * shared * n, d) @ k.transpose(-1, -2)
            scores = torch.cat([before.view(groups, blocks, shared * n, count), scores], -1)
        scores = scores.view(groups, blocks, shared, n, -1)
        if cap:
            scores = cap * torch.tanh(scores / cap)
        shares = torch.softmax(scores.add_(mask), -1)
        found = shares[..., count:].reshape(groups, blocks, shared * n, -1) @ value
        if count:
            found += (shares[..., :count].reshape(groups, blocks * shared * n, count) @ v).view_as(found)
        return found.view(groups, blocks, shared, n, -1)


class ReadingCache(_OwnCache):
    """The keys and values of a pack's tokens, which come after a shared beginning. They are kept in `kept`.

    The pack falls into blocks, one for each subtree: only within one, and to the beginning, is anything seen. Where that saves too
    little (one block, a long beginning), or where a kernel skips what the mask hides (`by_tiles`), all is done at once under the mask.
    """

    def __init__(self, layers: int, beginning: Beginning, pack: Pack, device: torch.device, by_tiles: bool = False) -> None:
        super().__init__(layers, beginning)
        self.pack, self.device = pack, device
        self.kept: KeysValues = [None] * layers  # type: ignore[list-item]
        borders = _subtrees(pack.end)
        width = int(np.diff(borders).max())
        count = len(pack.tokens)
        self.dense = by_tiles or len(beginning) > DENSE_BEGINNING or (len(borders) - 1) * width * width * 2 > count * count
        place = borders[:-1, None] + np.arange(width)
        self._empty = place >= borders[1:, None]  # (B, W)
        self._place = np.where(self._empty, 0, place)
        inverse = np.flatnonzero(~self._empty.ravel())
        self._gather = torch.from_numpy(self._place.ravel()).to(device)
        self._scatter = torch.from_numpy(inverse).to(device)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.kept[layer_idx] = key_states[0], value_states[0]
        if not self.dense or not len(self.beginning):
            return key_states, value_states
        k, v = self.beginning.layers[layer_idx]
        return torch.cat([k[None], key_states], 2), torch.cat([v[None], value_states], 2)

    def mask(self, rule: Rule, dtype: torch.dtype) -> torch.Tensor:
        """(1, 1, T, P + T) in the model's type, or by blocks (B, 1, W, P + W) in float32; added to the scores."""
        count, pack = len(self.beginning), self.pack
        if self.dense:
            allowed = np.concatenate([np.ones((len(pack.tokens), count), bool), pack.mask()], 1)
            position = np.concatenate([np.arange(count), count + pack.positions])
            seen = self._rule(rule, count + pack.positions[:, None], position[None, :]) & torch.from_numpy(allowed).to(self.device)
            return packed_attention.additive(seen, dtype)
        place, empty = self._place, self._empty
        own = (place[:, None, :] <= place[:, :, None]) & (place[:, :, None] < pack.end[place][:, None, :]) & ~empty[:, None, :]
        allowed = np.concatenate([np.ones((*place.shape, count), bool), own], 2)
        own_position = count + pack.positions[place]
        position = np.concatenate([np.broadcast_to(np.arange(count), (len(place), count)), own_position], 1)
        seen = self._rule(rule, own_position[:, :, None], position[:, None, :]) & torch.from_numpy(allowed).to(self.device)
        seen |= torch.from_numpy(empty[:, :, None]).to(self.device)  # what fills up is not used, but must not become NaN
        return torch.zeros(1, device=self.device).where(seen, float("-inf"))[:, None]

    def _rule(self, rule: Rule, query: np.ndarray, key: np.ndarray) -> torch.Tensor:
        none = torch.zeros((), dtype=torch.long, device=self.device)
        return rule(none, none, torch.from_numpy(query).to(self.device), torch.from_numpy(key).to(self.device))

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        scaling: float,
        cap: float | None,
    ) -> torch.Tensor:
        """query: (1, heads, T, d) → (1, T, heads, d of the values)."""
        if self.dense:
            of_packs = ALL_ATTENTION_FUNCTIONS[packed_attention.register()]
            out: torch.Tensor = of_packs(module, query, key, value, mask, scaling=scaling, **({"softcap": cap} if cap else {}))[0]
            return out
        groups, (blocks, width) = key.shape[1], self._place.shape
        q = (query[0].float() * scaling).view(groups, -1, *query.shape[2:]).index_select(2, self._gather)
        q = q.view(groups, -1, blocks, width, q.shape[-1]).transpose(1, 2)
        k, v = (x[0].float().index_select(1, self._gather).view(groups, blocks, width, -1) for x in (key, value))
        found = self._joint(module.layer_idx, q, k, v, mask, cap)
        rows = found.permute(1, 3, 0, 2, 4).reshape(blocks * width, query.shape[1], -1)
        return rows.index_select(0, self._scatter)[None].to(query.dtype)


class AnsweringCache(_OwnCache):
    """Keys and values of R rows, one new token a row at a time, after a shared beginning.

    layers: for each layer keys and values (key-value heads, R, room, d), float32 where not `able`, of which the first `width` columns are filled, on the
    left with what does not count: of row r the first width - lengths[r].
    """

    def __init__(self, beginning: Beginning, layers: KeysValues, lengths: torch.Tensor, width: int) -> None:
        whole = [(k.contiguous(), v.contiguous()) for k, v in beginning.layers]
        super().__init__(len(layers), Beginning(beginning.tokens, whole))
        self.own, self.lengths, self.width = layers, lengths, width
        self.steps = 0

    @staticmethod
    def able(k: torch.Tensor, v: torch.Tensor) -> bool:
        """Whether the kernel takes keys and values like these (`attend_one` in kernels/cpu.c); else they are kept in float32."""
        d = k.shape[-1]
        return library.usable(k, v) and v.shape[-1] == d and d % 16 == 0 and d <= 256

    @property
    def positions(self) -> torch.Tensor:
        """(R,) position of the token that comes next."""
        return len(self.beginning) + self.lengths + self.steps

    def keep(self, rows: torch.Tensor) -> None:
        """Drop every row but these."""
        end = self.width + self.steps
        for n, pair in enumerate(self.own):
            self.own[n] = tuple(self._selected(x, rows, end) for x in pair)  # type: ignore[assignment]
        self.lengths = self.lengths[rows]

    @staticmethod
    def _selected(x: torch.Tensor, rows: torch.Tensor, end: int) -> torch.Tensor:
        fewer = x.new_empty(x.shape[0], len(rows), *x.shape[2:])
        fewer[:, :, :end] = x[:, :, :end].index_select(1, rows)
        return fewer

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        for store, new in zip(self.own[layer_idx], (key_states, value_states), strict=True):
            store[:, :, self.width + self.steps] = new[:, :, 0].transpose(0, 1)
        return key_states, value_states

    def mask(self, rule: Rule, dtype: torch.dtype) -> torch.Tensor:
        """(R, 1, 1, P + columns so far), added to the scores."""
        device, count, end = self.lengths.device, len(self.beginning), self.width + self.steps + 1
        none = torch.zeros((), dtype=torch.long, device=device)
        before = torch.arange(count, device=device).expand(len(self.lengths), count)
        own = count + torch.arange(end, device=device) - (self.width - self.lengths)[:, None]
        position = torch.cat([before, own], 1)
        filled = torch.cat([torch.ones_like(before, dtype=torch.bool), own >= count], 1)
        seen = filled & rule(none, none, self.positions[:, None], position)
        return torch.zeros(1, device=device).where(seen, float("-inf"))[:, None, None]

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        scaling: float,
        cap: float | None,
    ) -> torch.Tensor:
        """query: (R, heads, 1, d) → (R, 1, heads, d of the values)."""
        own, end = self.own[module.layer_idx], self.width + self.steps + 1
        if query.dtype == own[0].dtype and self.able(*own):
            return self._by_kernel(module.layer_idx, query, mask, scaling, cap)
        k, v = (x[:, :, :end].float() for x in own)
        groups, rows = k.shape[:2]
        q = (query.float() * scaling).view(rows, groups, -1, 1, query.shape[-1]).transpose(0, 1)
        found = self._joint(module.layer_idx, q, k, v, mask, cap)
        return found.transpose(0, 1).reshape(rows, 1, query.shape[1], -1).to(query.dtype)

    def _by_kernel(self, layer: int, query: torch.Tensor, mask: torch.Tensor, scaling: float, cap: float | None) -> torch.Tensor:
        own_k, own_v = self.own[layer]
        key_heads, rows, room, d = own_k.shape
        k, v = self.beginning.layers[layer] if len(self.beginning) else (None, None)
        out = query.new_empty(rows, 1, query.shape[1], d)
        figures = (
            rows,
            query.shape[1],
            key_heads,
            d,
            len(self.beginning),
            room,
            self.width + self.steps + 1,
            float(scaling),
            float(cap or 0),
        )
        library.done(library.call("attend_one", query.dtype, query.contiguous(), k, v, own_k, own_v, mask.contiguous(), out, *figures))
        return out


def _subtrees(end: np.ndarray) -> np.ndarray:
    """(B + 1,) where each subtree of a pack begins, and the end."""
    borders = [0]
    while borders[-1] < len(end):
        borders.append(int(end[borders[-1]]))
    return np.array(borders)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor:
    return _now.get().mask(kwargs["mask_function"], kwargs["dtype"])


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _now.get().attend(module, query, key, value, attention_mask, scale, softcap), None


@contextmanager
def seen_by(model: Any) -> Iterator[None]:
    """Within this block the model's attention is this file's, and the model is in evaluation mode; afterwards it is as before."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    own, training = model.config._attn_implementation, model.training
    model.eval()
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(own)
        model.train(training)
