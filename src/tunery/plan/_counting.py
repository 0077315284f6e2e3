"""What one batch computes and keeps, counted operation by operation on shapes alone (torch's meta device): no weights, no time.

The model is built from its config with one layer and with two; every further layer costs the same, so the rest is arithmetic. Whatever the
architecture, the method or the task, it is its real code that runs here, so there is no formula that can fall behind it.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import masking_utils

from tunery.kernels import library
from tunery.plan.workload import Count, Height

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


def count(
    config: Any, build: Callable[[Any], Any], losses: list[Callable[[Any], torch.Tensor]], autocast: torch.dtype | None = None
) -> list[Count]:
    """For each of `losses`, what computing it and its gradient takes.

    `build(config)` makes the model, under the meta device, with what is learned attached; a loss is a function of that model. autocast:
    compute products in this type while weights are float32.
    """
    layers = int(config.get_text_config().num_hidden_layers)
    found = []
    for n in (1, 2):
        with torch.device("meta"):
            model = build(with_layers(config, n))
        found.append([_one(model, loss, autocast) for loss in losses])
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


def _one(model: Any, loss: Callable[[Any], torch.Tensor], autocast: torch.dtype | None) -> Count:
    result = Count()
    with _fused_attention(result, autocast), _Operations(result), _Autocast(autocast) if autocast else nullcontext() as lowering:
        value, result.saved_bytes = saved_bytes(model, loss)
        result.forward = result.operations.copy()
        if lowering:
            lowering.cast = None
        value.backward()
    model.zero_grad()
    return result


def height(model: Any, loss: Callable[[Any], torch.Tensor], vocabulary: int, again: bool, autocast: torch.dtype | None = None) -> Height:
    """The most that is alive at a time while the loss and its gradient are made, beside weights and buffers; model: on the meta device.

    Nothing here is a formula: the code that trains is run, and each tensor that it makes is counted for as long as it lives. again: with
    the gradients of a batch before this one, as where a step has several; they are then no part of the height. autocast: compute products
    in this type while weights are float32.
    """
    for p in model.parameters():
        p.grad = torch.empty_like(p) if again and p.requires_grad else None
    fixed = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    alive = _Alive({t.untyped_storage()._cdata for t in fixed}, vocabulary)
    with _fused_attention(Count(), autocast), alive, _Autocast(autocast) if autocast else nullcontext() as lowering:
        value = loss(model)
        if lowering:
            lowering.cast = None
        value.backward()
    del value
    model.zero_grad()
    return Height(alive.peak - alive.logits_at_peak, alive.logits_at_peak)


class _Alive(TorchDispatchMode):
    """Bytes of the storages that operations made and that still are; a storage is gone when its last tensor is."""

    def __init__(self, fixed: set[int], vocabulary: int, device: str = "meta") -> None:
        super().__init__()
        self.known, self.vocabulary, self.device = fixed, vocabulary, device
        self.alive = self.logits = self.peak = self.logits_at_peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in _tensors(out):
            storage = t.untyped_storage()
            if t.device.type != self.device or storage._cdata in self.known:
                continue
            size = storage.nbytes()
            logits = size if t.dim() > 1 and t.shape[-1] == self.vocabulary else 0
            self.known.add(storage._cdata)
            weakref.finalize(storage, self._gone, storage._cdata, size, logits)
            self.alive, self.logits = self.alive + size, self.logits + logits
            if self.alive > self.peak:
                self.peak, self.logits_at_peak = self.alive, self.logits
        return out

    def _gone(self, key: int, size: int, logits: int) -> None:
        self.known.discard(key)
        self.alive, self.logits = self.alive - size, self.logits - logits


class _Autocast:
    """torch.autocast, which does not know the meta device: products take their inputs in `dtype`, and a weight is cast once a batch.

    In place of torch's functions, not as a mode: what is computed again for the backward pass would not see a mode. Under it the compiled
    kernels are not used, as under torch's.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.cast: dict[torch.Tensor, torch.Tensor] | None = {}
        """None once the forward pass has ended: what is computed again for the backward pass is cast anew, and dropped."""
        self.plain = library.without()

    def __enter__(self) -> _Autocast:
        self.plain.__enter__()
        self.own = [(place, name, getattr(place, name)) for place, name in _PRODUCTS]
        for place, name, function in self.own:
            setattr(place, name, self._lowered(function))
        return self

    def __exit__(self, *raised: object) -> None:
        self.plain.__exit__(None, None, None)
        for place, name, function in self.own:
            setattr(place, name, function)

    def _lowered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def lowered(*args: Any, **kwargs: Any) -> Any:
            return function(*(self._lower(a) for a in args), **{key: self._lower(a) for key, a in kwargs.items()})

        return lowered

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        if self.cast is None or not (value.is_leaf and value.requires_grad):
            return value.to(self.dtype)
        if value not in self.cast:
            self.cast[value] = value.to(self.dtype)
        return self.cast[value]


_PRODUCTS: tuple[tuple[Any, str], ...] = (
    (F, "linear"),
    (torch, "matmul"),
    (torch, "bmm"),
    (torch, "baddbmm"),
    (torch.Tensor, "matmul"),
    (torch.Tensor, "__matmul__"),
)
"""Of what autocast computes in bfloat16, what transformers' layers call; attention is the other (`_fused_attention`)."""


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
        if packet.__name__ in _KERNELS:
            _KERNELS[packet.__name__](self.result, *args)
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
def _fused_attention(result: Count, autocast: torch.dtype | None = None) -> Iterator[None]:
    """On shapes alone torch would take attention apart, with a T x T matrix for each head; a real device computes it in one piece."""

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            out = torch.empty_like(q)
            ctx.save_for_backward(q, k, v, mask, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
            _attend(result, "attention", q, k, 4, q.shape[:-1].numel() * k.shape[-2])
            return out

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            q, k, v, *_ = ctx.saved_tensors
            # Five products of two matrices, against two forward.
            _attend(result, "attention_backward", q, k, 10, q.shape[:-1].numel() * k.shape[-2])
            return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None

    own = F.scaled_dot_product_attention

    def fused(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if query.device.type != "meta":
            return own(query, key, value, attn_mask, *args, **kwargs)
        if autocast:
            query, key, value = (x.to(autocast) for x in (query, key, value))
            attn_mask = attn_mask.to(autocast) if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
        if kwargs.get("enable_gqa") and key.shape[1] != query.shape[1]:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out: torch.Tensor = Fused.apply(query, key, value, attn_mask)
        return out

    # Methods whose rows are alone leave the mask to transformers, which looks into it for padding. There is none.
    look = masking_utils.fast_all
    F.scaled_dot_product_attention = fused
    masking_utils.fast_all = lambda mask: mask.device.type == "meta" or look(mask)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own
        masking_utils.fast_all = look


def _attend(result: Count, kind: str, q: torch.Tensor, k: torch.Tensor, products: int, pairs: int) -> None:
    """products: 2 × the products of two matrices; pairs: of a query of any head and a key."""
    size = (q.numel() + k.numel() * 2) * q.element_size() * products // 2
    result.operations[kind, _name(q), products * pairs * q.shape[-1], size] += 1


def _flash(kind: str, first: int, products: int) -> Callable[..., None]:
    """Of what `train._block_attention` calls; first: where the queries stand among the arguments."""

    def counted(result: Count, *args: Any) -> None:
        q, k = args[first : first + 2]
        _attend(result, kind, q, k, products, q.shape[:-1].numel() * k.shape[2])

    return counted


def _tiles(kind: str, first: int, products: int) -> Callable[..., None]:
    """Of what `train._tile_attention` calls, which computes pairs of blocks: `bits` (pairs, side), the third argument from the end."""

    def counted(result: Count, *args: Any) -> None:
        q, k, bits = args[first], args[first + 1], args[-3]
        _attend(result, kind, q, k, products, q.shape[1] * bits.numel() * bits.shape[1])

    return counted


def _low_rank(
    result: Count,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    magnitude: Any = None,
    backward: bool = False,
) -> None:
    """Of `methods._tile_low_rank`: the product with the weight, and two thin ones or, backward, four; a (rank, in), b (out, rank).

    With a magnitude the weight is also multiplied with a.
    """
    whole = a.shape[1] * len(b)
    thin = 2 * len(x) * (a.numel() + b.numel()) * (2 if backward else 1) + (2 * len(a) * whole if magnitude is not None else 0)
    size = (len(x) * (a.shape[1] + len(b)) * (2 if backward else 1) + whole) * x.element_size()
    result.operations["tiles", _name(x), thin + (2 * len(x) * whole if weight is not None else 0), size] += 1


def _frozen(result: Count, x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> None:
    """Of `kernels.tile_linear`, either way; x: (..., width)."""
    rows = x.shape[:-1].numel()
    size = (rows * sum(weight.shape) + weight.numel()) * x.element_size()
    result.operations["tiles", _name(x), 2 * rows * weight.numel(), size] += 1


def _head_loss(
    result: Count, x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, *rest: Any
) -> None:
    """Of `train._tile_head`: the logits, and their gradient times the weight."""
    products = 4 if weights is not None else 2
    result.operations["tiles", _name(x), products * len(x) * weight.numel(), weight.numel() * x.element_size()] += 1


def _name(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


_KERNELS: dict[str, Callable[..., None]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _flash("attention", 0, 4),
    "_scaled_dot_product_flash_attention_for_cpu_backward": _flash("attention_backward", 1, 10),
    "tile_attention": _tiles("attention", 0, 4),
    "tile_attention_backward": _tiles("attention_backward", 1, 10),
    "low_rank": lambda result, x, weight, coded, a, b, scale, magnitude, *rest: _low_rank(result, x, weight, a, b, magnitude),
    "low_rank_backward": lambda result, dy, x, weight, coded, a, b, *rest: _low_rank(result, x, weight, a, b, backward=True),
    "frozen_linear": _frozen,
    "frozen_linear_backward": _frozen,
    "head_loss": _head_loss,
}
"""Operations that are more than one product, by name: each adds what it computes, from its arguments."""
