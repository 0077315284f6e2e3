"""One pack through a model: logits only where something is learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from tunery.errors import RunError
from tunery.tasks import Task
from tunery.tasks._next_token import loss as cross_entropy
from tunery.train import _head_loss
from tunery.train.attention import attending
from tunery.train.packs import Pack, TokenRow, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACK_TOKENS = 512
"""Tokens of a pack where the rows allow it. Attention costs T² inside a pack, while linear layers reach full speed at some hundred rows."""
FILLED = 32
"""Packs are filled up to a multiple of this, which kernels compute anyway. Lengths then come again, and with them what libraries keep
for each shape and the places of freed memory: beside the time it is 280 MB of twenty steps on headlines (docs/log.md)."""
LOGITS = 256
"""Positions whose logits exist at a time where autograd makes them: 50 MB in float32 with a vocabulary of 49,152. Whole rows of long
text would need gigabytes."""


def pack_loss(model: PreTrainedModel, task: Task, packed: Pack) -> tuple[torch.Tensor, torch.Tensor]:
    """The task's loss of a pack: the sum in nats, and the sum of the weights.

    Where the output layer or the task is not one that `_head_loss` knows, logits are made in chunks, and made again for the gradient.
    """
    hidden, head = _hidden(model, packed)
    if head.plain and task.loss is cross_entropy:
        source, targets, weights = (torch.from_numpy(x).to(model.device) for x in (packed.source, packed.targets, packed.weights))
        return _head_loss.summed(hidden[source], head.output, targets, weights, head.factor), weights.sum()
    sums = [
        checkpoint(_chunk_loss, head, part, task, targets, weights, use_reentrant=False)
        for part, targets, weights, _ in _chunks(hidden, packed)
    ]
    return torch.stack([s[0] for s in sums]).sum(), torch.stack([s[1] for s in sums]).sum()


def row_losses(model: PreTrainedModel, task: Task, packed: Pack) -> Iterator[tuple[int, float, float]]:
    """For each row of a pack, in parts: (row, sum in nats, sum of the weights). Without gradients."""
    hidden, head = _hidden(model, packed)
    if head.plain and task.loss is cross_entropy:
        source, targets = (torch.from_numpy(x).to(model.device) for x in (packed.source, packed.targets))
        nats = _head_loss.nats(hidden[source], head.output, targets, head.factor).cpu().numpy().astype(np.float64) * packed.weights
        for row in np.unique(packed.rows):
            own_row = packed.rows == row
            yield int(row), float(nats[own_row].sum()), float(packed.weights[own_row].sum())
        return
    for part, targets, weights, rows in _chunks(hidden, packed):
        logits = head(part)
        for row in np.unique(rows):
            own = torch.from_numpy(np.flatnonzero(rows == row)).to(model.device)
            total, count = task.loss(logits[own], targets[own], weights[own])
            yield int(row), total.item(), count.item()


def log_probs(model: PreTrainedModel, packed: Pack) -> torch.Tensor:
    """(S,) float32: the log-probability of each supervised target, in the order of `packed.targets`, with gradients.

    Logits are made in chunks, and made again for the gradient.
    """
    hidden, head = _hidden(model, packed)
    if head.plain:
        source, targets = (torch.from_numpy(x).to(model.device) for x in (packed.source, packed.targets))
        return -_head_loss.nats(hidden[source], head.output, targets, head.factor)
    return torch.cat(
        [checkpoint(_chunk_log_probs, head, part, targets, use_reentrant=False) for part, targets, *_ in _chunks(hidden, packed)]
    )


def logits_of(model: PreTrainedModel, packed: Pack) -> torch.Tensor:
    """(S, vocabulary): the logits of the pack's supervised predictions, in the order of `packed.targets`."""
    hidden, head = _hidden(model, packed)
    return torch.cat([head(part) for part, *_ in _chunks(hidden, packed)])


def _chunk_loss(
    head: Head, hidden: torch.Tensor, task: Task, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return task.loss(head(hidden), targets, weights)


def _chunk_log_probs(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -torch.nn.functional.cross_entropy(head(hidden).float(), targets, reduction="none")


def _chunks(hidden: torch.Tensor, packed: Pack) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]]:
    """(hidden states, targets, weights, rows) of at most `LOGITS` predictions at a time."""
    for start in range(0, len(packed.targets), LOGITS):
        part = slice(start, start + LOGITS)
        source, targets, weights = (torch.from_numpy(x[part]).to(hidden.device) for x in (packed.source, packed.targets, packed.weights))
        yield hidden[source], targets, weights, packed.rows[part]


def _hidden(model: PreTrainedModel, packed: Pack) -> tuple[torch.Tensor, Head]:
    """(T, width): what the output head is given, and the head with whatever the architecture does to its logits.

    The model is called whole, so every architecture's own forward runs; only its output layer is held back. What an architecture does
    after it (a factor, a soft cap) is elementwise and is learned from the config.
    """
    device = model.device
    kept: list[torch.Tensor] = []
    output = model.get_output_embeddings()

    def hold(head: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        kept.append(inputs[0])
        # One position, to compare with. As a copy: of a slice with the strides of the whole, torch would copy the head's whole weight.
        return (inputs[0][:, :1].clone(memory_format=torch.contiguous_format),)

    hook = output.register_forward_pre_hook(hold)
    try:
        with attending(packed):
            out = model(
                input_ids=torch.from_numpy(packed.tokens)[None].to(device),
                position_ids=torch.from_numpy(packed.positions)[None].to(device),
                # All ones: without a mask transformers would look for rows' borders in the positions.
                attention_mask=torch.ones(1, len(packed.tokens), dtype=torch.long, device=device),
                use_cache=False,
            )
    finally:
        hook.remove()
    hidden, own = kept[0][0], Head(output, model.config.get_text_config())
    if model not in _compared:
        with torch.no_grad():
            same = torch.allclose(own(hidden[:1]).float(), out.logits[0].float(), atol=1e-3, rtol=1e-3)
        if not same:
            raise RunError(
                f"{model.__class__.__name__} changes its logits in a way that is not known here; please report this architecture"
            )
        _compared.add(model)
    return hidden, own


_compared: WeakSet[torch.nn.Module] = WeakSet()
"""Models whose own logits were seen to be what `Head` makes."""


class Head:
    """The output layer, with the factor and the soft cap that some architectures put on its logits (Granite, Cohere; Gemma 2)."""

    def __init__(self, output: torch.nn.Module, config: Any) -> None:
        self.output: Any = output
        self.factor = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
        self.cap = getattr(config, "final_logit_softcapping", None)

    @property
    def plain(self) -> bool:
        """Whether its logits are a product with one matrix, times the factor."""
        return not self.cap and _head_loss.plain(self.output)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.output(hidden)
        if self.factor != 1.0:
            logits = logits * self.factor
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits


def packs_for(model: PreTrainedModel, rows: Iterable[TokenRow], share: bool = True, max_tokens: int = PACK_TOKENS) -> Iterator[Pack]:
    """Packs that this model can take: rows one by one where it has layers that run through the sequence instead of attending."""
    if getattr(model, "rows_apart", False) or not can_pack(model.config):  # set by a method whose rows cannot share a pack
        for number, row in enumerate(rows):
            for alone in pack([row], max_tokens=1, share=False):  # none where nothing is learned
                yield replace(alone, rows=np.full_like(alone.rows, number))
        return
    for packed in pack(rows, max_tokens, share):
        yield packed.filled(FILLED)


def can_pack(config: Any) -> bool:
    """Whether every layer is attention, which a mask can hold apart; a recurrent or convolutional layer mixes neighbours."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    attends = kinds <= {"full_attention", "sliding_attention", "chunked_attention"}
    return attends and not any(hasattr(text, k) for k in ("mamba_d_state", "ssm_cfg", "state_size", "conv_kernel", "rwkv_version"))
