"""Attention inside a pack: transformers' own seams for attention and masks, fed with the pack's prefix tree.

A model loaded with the attention implementation named `NAME` behaves as with `sdpa`, except inside `attending(pack)`, where each token
sees exactly the earlier tokens of its own row. Each architecture's own rule (causal, sliding window, chunks) is asked for positions
within the row instead of places in the pack, so it means what it means without packing.

The mask goes through the model as an ordinary additive one, which is right for any architecture. On a CPU it also carries what it was
made of, from which `_tile_attention` and `_block_attention` skip what it hides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from tunery.errors import RunError
from tunery.train import _block_attention, _tile_attention
from tunery.train.packs import Pack

NAME = "tunery"
_active: ContextVar[Pack | None] = ContextVar("pack", default=None)


@contextmanager
def attending(pack: Pack) -> Iterator[None]:
    """Within this block, a forward pass of a model with this attention sees `pack`."""
    token = _active.set(pack)
    try:
        yield
    finally:
        _active.reset(token)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    pack = _active.get()
    if pack is None:
        return sdpa_mask(*args, **kwargs)
    dtype = kwargs["dtype"]
    seen = _seen(pack, kwargs["mask_function"], kwargs["device"])
    mask = additive(seen, dtype)
    if mask.device.type == "meta":
        mask.seen = lambda: _seen(pack, kwargs["mask_function"])  # type: ignore[attr-defined]
    return mask


def additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(1, 1, T, K) to be added to scores, from what each query sees of the keys, (T, K) bool, which it carries.

    In the model's own type: a boolean mask would be turned into this once a layer.
    """
    mask = torch.zeros(1, dtype=dtype, device=seen.device).where(seen, float("-inf"))[None, None]
    mask.seen = lambda: seen  # type: ignore[attr-defined]
    return mask


def _seen(pack: Pack, rule: Any, device: torch.device | str = "cpu") -> torch.Tensor:
    """(T, T) bool: may token i look at token j, by the pack and by the architecture's rule for places in a row."""
    positions = torch.from_numpy(pack.positions).to(device)
    allowed: torch.Tensor = torch.from_numpy(pack.mask()).to(device)
    return allowed & rule(torch.tensor(0), torch.tensor(0), positions[:, None], positions[None, :])


def _cut(mask: torch.Tensor | None, key: Any, cut: Any) -> Any:
    """How a pack is cut, by `cut` from what each token sees: made once for all layers that share the mask. None for a mask that is not a pack's."""
    seen = getattr(mask, "seen", None)
    if seen is None:
        return None
    made: dict[Any, Any] = mask.__dict__.setdefault("made", {})
    if key not in made:
        made[key] = cut(seen().cpu().numpy())
    return made[key]


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query: (batch, heads, T, d), key and value: (batch, key-value heads, T, d) → (batch, T, heads, d)."""
    if kwargs.get("s_aux") is not None:
        raise RunError("this architecture's attention has sinks, which are not supported yet; choose another model")
    softcap = kwargs.pop("softcap", None)
    if softcap is None and _block_attention.possible(query, key, value, dropout):
        heads = query.shape[1] // key.shape[1]
        cut: Any = None
        attend: Any = None
        if _tile_attention.possible(query):
            cut, attend = _tile_attention.pairs, _tile_attention.attend
        elif query.shape[2] == key.shape[2]:
            cut, attend = partial(_block_attention.cut, heads=heads, dtype=query.dtype, device=query.device), _block_attention.attend
        pieces = _cut(attention_mask, (attend, heads, query.dtype), cut) if cut else None
        if pieces is not None:
            return attend(query, key, value, pieces, scaling), None
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = softcap * torch.tanh(query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5) / softcap)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf")) if attention_mask.dtype == torch.bool else scores + attention_mask
    shares = torch.nn.functional.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (shares @ value).transpose(1, 2).contiguous(), None


def register() -> str:
    """Make the attention known to transformers; the name to load a model with."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    return NAME
