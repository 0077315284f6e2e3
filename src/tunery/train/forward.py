"""One pack through a model: logits only where something is learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunery.train.attention import attending
from tunery.train.packs import Pack, TokenRow, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACK_TOKENS = 512
"""Tokens of a pack where the rows allow it. Attention costs T² inside a pack, while linear layers reach full speed at some hundred rows."""


def logits_of(model: PreTrainedModel, packed: Pack) -> torch.Tensor:
    """(S, vocabulary): the logits of the pack's supervised predictions, in the order of `packed.targets`."""
    device = model.device
    kept, again = np.unique(packed.source, return_inverse=True)  # a shared token may predict for several rows
    with attending(packed):
        logits = model(
            input_ids=torch.from_numpy(packed.tokens)[None].to(device),
            position_ids=torch.from_numpy(packed.positions)[None].to(device),
            # All ones: without a mask transformers would look for rows' borders in the positions.
            attention_mask=torch.ones(1, len(packed.tokens), dtype=torch.long, device=device),
            use_cache=False,
            logits_to_keep=torch.from_numpy(kept).to(device),
        ).logits[0]
    if len(kept) == len(packed.source) and (again == np.arange(len(again))).all():
        return logits
    return logits[torch.from_numpy(again).to(device)]


def packs_for(model: PreTrainedModel, rows: Iterable[TokenRow], share: bool = True, max_tokens: int = PACK_TOKENS) -> Iterator[Pack]:
    """Packs that this model can take: rows one by one where it has layers that run through the sequence instead of attending."""
    if not can_pack(model.config):
        for number, row in enumerate(rows):
            for alone in pack([row], max_tokens=1, share=False):  # none where nothing is learned
                yield replace(alone, rows=np.full_like(alone.rows, number))
        return
    yield from pack(rows, max_tokens, share)


def can_pack(config: Any) -> bool:
    """Whether every layer is attention, which a mask can hold apart; a recurrent or convolutional layer mixes neighbours."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    attends = kinds <= {"full_attention", "sliding_attention", "chunked_attention"}
    return attends and not any(hasattr(text, k) for k in ("mamba_d_state", "ssm_cfg", "state_size", "conv_kernel", "rwkv_version"))
