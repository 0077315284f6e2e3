"""What one batch computes and keeps, counted operation by operation on shapes alone (torch's meta device): no weights, no time.

The model is built from its config with one layer and with two; every further layer costs the same, so the rest is arithmetic. Whatever the
architecture, the method or the task, it is its real code that runs here, so there is no formula that can fall behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tunery.plan.workload import Count

THIN = 64
"""A matrix product with a side of at most this many runs far below the machine's rate; LoRA's ranks are usual examples."""


def with_layers(config: Any, layers: int) -> Any:
    """A copy of a model's config with that many layers."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return small


def count(config: Any, build: Callable[[Any], Any], losses: list[Callable[[Any], torch.Tensor]]) -> list[Count]:
    """For each of `losses`, what computing it and its gradient takes.

    `build(config)` makes the model, under the meta device, with what is learned attached; a loss is a function of that model.
    """
    layers = int(config.get_text_config().num_hidden_layers)
    found = []
    for n in (1, 2):
        with torch.device("meta"):
            model = build(with_layers(config, n))
        found.append([_one(model, loss) for loss in losses])
    return [one.extrapolated(two, layers) for one, two in zip(*found, strict=True)]


def saved_bytes(model: torch.nn.Module, loss: Callable[[Any], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The loss, and the bytes of the storages that autograd keeps for its gradient; those of weights and buffers are not counted."""
    fixed = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, tuple[Any, int]] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if t.device == next(model.parameters()).device and storage._cdata not in fixed:
            kept[storage._cdata] = (storage, storage.nbytes())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        value = loss(model)
    return value, sum(size for _, size in kept.values())


def _one(model: Any, loss: Callable[[Any], torch.Tensor]) -> Count:
    result = Count()
    with _fused_attention(result), _Operations(result):
        value, result.saved_bytes = saved_bytes(model, loss)
        result.forward = result.operations.copy()
        value.backward()
    model.zero_grad()
    return result


class _Operations(TorchDispatchMode):
    def __init__(self, result: Count) -> None:
        super().__init__()
        self.result = result

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        inputs = [t for t in _tensors(args) if t.device.type == "meta"]
        tensors = [*inputs, *(t for t in _tensors(out) if t.device.type == "meta")]
        if not tensors or func.is_view or packet.__name__ in _FREE:
            return out
        counter = flop_registry.get(packet)
        flops = int(counter(*args, **(kwargs or {}), out_val=out)) if counter else 0
        kind = "other" if not flops else "thin" if min(min(t.shape[-2:]) for t in inputs if t.dim() > 1) <= THIN else "matrix"
        size = sum(t.numel() * t.element_size() for t in tensors)
        # What the values are computed in: of the inputs, since a sum of bfloat16 values may come out in float32.
        self.result.operations[kind, str(tensors[0].dtype).removeprefix("torch."), flops, size] += 1
        return out


_FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "alias", "lift_fresh"}
"""Operations that touch no values."""


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


@contextmanager
def _fused_attention(result: Count) -> Iterator[None]:
    """On shapes alone torch would take attention apart, with a T x T matrix for each head; a real device computes it in one piece."""

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            out = torch.empty_like(q)
            ctx.save_for_backward(q, k, v, mask, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
            _attend(result, "attention", q, k, 4)
            return out

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            q, k, v, *_ = ctx.saved_tensors
            _attend(result, "attention_backward", q, k, 10)  # five products of two matrices, against two forward
            return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None

    own = F.scaled_dot_product_attention

    def fused(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if query.device.type != "meta":
            return own(query, key, value, attn_mask, *args, **kwargs)
        if kwargs.get("enable_gqa") and key.shape[1] != query.shape[1]:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out: torch.Tensor = Fused.apply(query, key, value, attn_mask)
        return out

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


def _attend(result: Count, kind: str, q: torch.Tensor, k: torch.Tensor, products: int) -> None:
    flops = products * q.numel() * k.shape[-2]
    size = (q.numel() + k.numel() * 2) * q.element_size() * products // 2
    result.operations[kind, str(q.dtype).removeprefix("torch."), flops, size] += 1
