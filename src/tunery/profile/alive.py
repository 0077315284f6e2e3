"""What was alive at the height of a step, and to which part it belongs: from every allocation that the profiler saw.

What lies there before the step (weights, adapter, the optimiser's state) is counted from the tensors themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set
from typing import Any

from tunery.profile.spent import Place


def held(model: Any, engine: Any, trains_base: bool) -> dict[str, int]:
    """Bytes of this process that are there before a step and after it. trains_base: what is learned are the weights themselves."""
    from tunery.sharding._engine import stored

    learned = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    own = stored(learned)
    # The scales of four-bit weights are no parameters.
    scales = sum(m.nbytes - m.weight.nbytes for m in model.modules() if hasattr(m, "dense") and hasattr(m, "nbytes"))
    weights = stored([*frozen, *model.buffers()]) + scales
    optimiser = stored(t for state in engine.optimizer.state.values() for t in state.values() if hasattr(t, "untyped_storage"))
    return {"weights": weights + (own if trains_base else 0), "adapter": 0 if trains_base else own, "optimiser": optimiser}


def height(allocations: Iterable[tuple[Any, Place]], gradients: Set[int], device: str) -> dict[str, dict[str, int]]:
    """`{"passing": bytes by kind (`gradients`, and those of `parts.PASSING`), "kept": bytes of the kept activations by part}` at the height.

    allocations: in the order of time. gradients: addresses of the gradients when the optimiser began. device: `cpu` or `cuda`.
    """
    alive: dict[int, tuple[int, Place, bool]] = {}
    total = most = 0
    kept_most: dict[int, tuple[int, Place, bool]] = {}
    growing = False
    events = [(node.extra_fields, place) for node, place in allocations if node.extra_fields.device.type == device]
    gradient_births = _last_births(events, gradients)
    for n, (block, place) in enumerate(events):
        if block.alloc_size > 0:
            alive[block.ptr] = block.alloc_size, place, n in gradient_births
            total += block.alloc_size
            growing = growing or total > most
        elif block.ptr in alive:  # else it was there before
            if growing and total > most:
                most, kept_most = total, dict(alive)
            growing = False
            total -= alive.pop(block.ptr)[0]
    if total > most:
        kept_most = alive
    passing: defaultdict[str, int] = defaultdict(int)
    kept: defaultdict[str, int] = defaultdict(int)
    for size, place, gradient in kept_most.values():
        kind = "gradients" if gradient else _kind(place)
        passing[kind] += size
        if kind == "kept":
            kept[place.scope.name] += size
    return {"passing": dict(passing), "kept": dict(kept)}


def _last_births(events: list[tuple[Any, Place]], gradients: Set[int]) -> set[int]:
    """Numbers of the allocations that became the gradients: the last at each address before the optimiser's own work."""
    births: dict[int, int] = {}
    for n, (block, place) in enumerate(events):
        if place.scope.name == "optimiser" and not place.backward:
            break
        if block.alloc_size > 0 and block.ptr in gradients:
            births[block.ptr] = n
    return set(births.values())


def _kind(place: Place) -> str:
    if place.scope.name in ("head", "loss"):
        return "logits"
    if place.backward:
        return "backward"
    return {"data": "data", "step": "other", "other": "other", "optimiser": "other"}.get(place.scope.name, "kept")
