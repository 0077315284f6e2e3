"""From the profiler's tree of operations to the seconds, and the floating point operations, of each part of a step.

On a CPU every moment of the step belongs to the innermost operation or range that was open, so the parts add up to the step. On a GPU the
parts are the durations of the kernels that an operation launched, and what is left of the step is the device without work.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tunery.profile.scope import STEP, Scope, scope_of

_NODE = "autograd::engine::evaluate_function: "
_PRODUCTS = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1, "_addmm_activation": 1}
"""Matrix products, and the place of their first matrix among the arguments."""
_COPIES = {"copy", "_to_copy", "to", "clone", "contiguous", "type_as", "_reshape_copy", "repeat", "repeat_interleave", "cat"}
_EXCHANGES = ("c10d::", "gloo:", "nccl:", "record_param_comms", "fsdp::", "FSDP::")
NOWHERE = Scope("other")


@dataclass(frozen=True)
class Place:
    """Where an operation, or an allocation, is: its innermost scope, and whether the backward pass is under way."""

    scope: Scope
    backward: bool


@dataclass
class Spent:
    """Sums over the steps that were looked at. Seconds are kept by part and pass."""

    steps: int = 0
    wall: float = 0.0
    seconds: defaultdict[tuple[str, bool], float] = field(default_factory=lambda: defaultdict(float))
    flops: Counter[str] = field(default_factory=Counter)
    product_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    operations: defaultdict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    """(part, operation) → [seconds of its own, calls]"""


def add(spent: Spent, roots: list[Any], kernels: dict[int, float] | None) -> list[tuple[Any, Place]]:
    """Add one profiled step; what was allocated and freed in it, in the order of time.

    roots: the profiler's tree. kernels: seconds on the device by the number of the operation that launched them; None on a CPU.
    """
    step = next(node for node in roots if node.name == STEP)
    walk = _Walk(spent, kernels, _forward_scopes(roots))
    # On a CPU autograd works in the thread that calls it; a device has a thread of its own for it.
    for root in [step] if kernels is None else roots:
        walk.node(root, Place(NOWHERE, False), False)
    wall = step.duration_time_ns / 1e9
    if kernels is not None:
        spent.seconds["idle", False] += max(0.0, wall - walk.device)
        wall = max(wall, walk.device)
    spent.steps, spent.wall = spent.steps + 1, spent.wall + wall
    return sorted(walk.allocations, key=lambda found: int(found[0].start_time_ns))


def _forward_scopes(roots: list[Any]) -> dict[int, Scope]:
    """The scope in which autograd's node of each sequence number was made.

    Many operations see a number before the node with it is made, so the last one counts. Numbers are a thread's own: what checkpointing
    computes again in a device's autograd thread may be taken for another layer's.
    """
    found: dict[int, tuple[int, Scope]] = {}

    def look(node: Any, scope: Scope) -> None:
        scope = scope_of(node.name) or scope
        number = getattr(node.extra_fields, "sequence_number", -1)
        if node.name.startswith(_NODE):
            return
        if number >= 0 and (number not in found or found[number][0] <= node.start_time_ns):
            found[number] = node.start_time_ns, scope
        for child in node.children:
            look(child, scope)

    for root in roots:
        look(root, NOWHERE)
    return {number: scope for number, (_, scope) in found.items()}


class _Walk:
    def __init__(self, spent: Spent, kernels: dict[int, float] | None, forward: dict[int, Scope]) -> None:
        self.spent, self.kernels, self.forward = spent, kernels, forward
        self.device = 0.0
        self.allocations: list[tuple[Any, Place]] = []

    def node(self, node: Any, place: Place, in_product: bool) -> None:
        """node and all that is inside it. in_product: inside a matrix product that is counted already."""
        name = node.name
        if node.tag.name == "Allocation":
            self.allocations.append((node, place))
            return
        scope = scope_of(name)
        if scope is not None:
            place = Place(scope, place.backward or scope.name == "backward")
        elif name.startswith(_NODE):
            accumulates = name.endswith("AccumulateGrad")
            number = getattr(node.extra_fields, "sequence_number", -1)
            place = Place(Scope("optimiser") if accumulates else self.forward.get(number, NOWHERE), True)
        part = part_of(name, scope is not None, place.scope, _shapes(node))
        own = self._own(node, scope is not None)
        self.spent.seconds[part, place.backward and part not in ("optimiser", "exchange")] += own
        if scope is None:
            counted = self.spent.operations[part, name.removeprefix(_NODE).removeprefix("aten::")]
            counted[0], counted[1] = counted[0] + own, counted[1] + 1
        flops = 0 if in_product else flops_of(name, _shapes(node))
        if flops:
            self.spent.flops[part] += flops
            self.spent.product_seconds[part] += node.duration_time_ns / 1e9 if self.kernels is None else self._whole(node)
        for child in node.children:
            self.node(child, place, in_product or bool(flops))

    def _own(self, node: Any, ours: bool) -> float:
        if self.kernels is None:
            inside = sum(child.duration_time_ns for child in node.children if child.tag.name != "Allocation")
            return float(max(0, node.duration_time_ns - inside)) / 1e9
        seconds = 0.0 if ours else self.kernels.get(node.correlation_id, 0.0)  # a range of ours is shown on the device once more
        self.device += seconds
        return seconds

    def _whole(self, node: Any) -> float:
        assert self.kernels is not None
        return self.kernels.get(node.correlation_id, 0.0) + sum(self._whole(child) for child in node.children)


def part_of(name: str, ours: bool, scope: Scope, shapes: list[tuple[int, ...]]) -> str:
    """The part to which the own time of an operation belongs; see `parts.PARTS`. ours: it is one of our ranges."""
    if name.startswith(_EXCHANGES):
        return "exchange"
    if scope.name in ("data", "optimiser"):
        return scope.name
    if ours or name.startswith(_NODE) or "::" not in name:  # the layers' own Python, and autograd's nodes
        return "python"
    if name.startswith("bitsandbytes::"):
        return "dequantise"
    operation = _plain(name)
    if operation in _COPIES:
        return "copies"
    if operation in _PRODUCTS:
        return _product(operation, scope, shapes)
    if operation.startswith(("low_rank", "frozen_linear")):
        return "matrix"
    if operation == "head_loss":
        return "head"
    if "scaled_dot_product" in operation or operation.startswith("tile_attention") or (scope.name == "layers" and "softmax" in operation):
        return "attention"
    return {"loss": "head", "layers": "elementwise", "rotary": "elementwise", "linear": "matrix", "backward": "other", "step": "other"}.get(
        scope.name, scope.name
    )


def _product(operation: str, scope: Scope, shapes: list[tuple[int, ...]]) -> str:
    if scope.name == "adapter":
        # The sides of a product with the frozen weight, or of one of its shape, are (rows, in, out); where an adapter's matrix takes part
        # one is its rank, or twice that (`LoraLinear.factors`). PEFT's layers call theirs as a layer of its own.
        rest = Counter(_sides(operation, shapes)) - Counter((scope.inputs, scope.outputs))
        return "matrix" if scope.rank and sum(rest.values()) == 1 and not {scope.rank, 2 * scope.rank} & set(rest) else "adapter"
    if scope.name == "layers":  # of a layer that is no linear module, or an attention that is written out
        return "attention" if operation.endswith("bmm") else "matrix"
    return {"loss": "head", "linear": "matrix", "rotary": "elementwise", "step": "other", "backward": "other"}.get(scope.name, scope.name)


def flops_of(name: str, shapes: list[tuple[int, ...]]) -> int:
    """Floating point operations of a matrix product or of attention in one piece, of what it computes of the mask; 0 of anything else."""
    operation = _plain(name)
    if operation in _PRODUCTS:
        sides = _sides(operation, shapes)
        batch = shapes[_PRODUCTS[operation]][0] if operation.endswith("bmm") and sides else 1
        return 2 * math.prod(sides) * batch if sides else 0
    if operation.startswith("_scaled_dot_product") and "attention" in operation:
        backward = operation.endswith("backward")  # five products of two matrices, against two forward
        query, key = [*shapes, (), (), ()][1 if backward else 0 :][:2]
        return (10 if backward else 4) * math.prod(query) * key[-2] if len(query) == len(key) == 4 else 0
    return _KERNELS[operation](shapes) if operation in _KERNELS and len(shapes) > 1 else 0


def _pairs(products: int, first: int, bits: int) -> Callable[[list[tuple[int, ...]]], int]:
    """Of attention by pairs of blocks; first and bits: where (1, heads, T, d) and (pairs, side) stand among the arguments."""
    return lambda shapes: products * shapes[first][1] * shapes[first][3] * shapes[bits][0] * shapes[bits][1] ** 2


def _low_rank(thin: int, first: int) -> Callable[[list[tuple[int, ...]]], int]:
    """Of an adapted layer: the product with its weight, if there is one, and thin ones; first: where x stands, before weight, code, a and b."""

    def flops(shapes: list[tuple[int, ...]]) -> int:
        (rows, width), weight, _, (rank, _), (out, _) = shapes[first : first + 5]
        return 2 * rows * (width * out * bool(weight) + thin * rank * (width + out))

    return flops


def _head(shapes: list[tuple[int, ...]]) -> int:
    return (4 if shapes[3] else 2) * math.prod(shapes[0]) * shapes[1][0]


_KERNELS: dict[str, Callable[[list[tuple[int, ...]]], int]] = {
    "tile_attention": _pairs(4, 0, 5),
    "tile_attention_backward": _pairs(10, 1, 8),
    "low_rank": _low_rank(1, 0),
    "low_rank_backward": _low_rank(2, 1),
    "frozen_linear": lambda shapes: 2 * math.prod(shapes[0][:-1]) * math.prod(shapes[1]),
    "frozen_linear_backward": lambda shapes: 2 * math.prod(shapes[0][:-1]) * math.prod(shapes[1]),
    "head_loss": _head,
}


def _sides(operation: str, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """(m, k, n) of a product, empty where the shapes were not recorded."""
    first = _PRODUCTS[operation]
    if len(shapes) < first + 2 or min(len(shapes[first]), len(shapes[first + 1])) < 2:
        return ()
    return (*shapes[first][-2:], shapes[first + 1][-1])


def _plain(name: str) -> str:
    """`mm` of `aten::mm`; in place is the same operation."""
    operation = name.rpartition("::")[2]
    return operation if operation.startswith("__") else operation.rstrip("_")


def _shapes(node: Any) -> list[tuple[int, ...]]:
    inputs = getattr(node.extra_fields, "inputs", None) or []
    return [tuple(getattr(value, "sizes", None) or ()) for value in inputs]


def kernels_of(events: Iterator[Any]) -> dict[int, float]:
    """Seconds on the device by the number of the operation that launched the work."""
    found: defaultdict[int, float] = defaultdict(float)
    for event in events:
        if event.device_type().name != "CPU" and event.linked_correlation_id() > 0:
            found[event.linked_correlation_id()] += event.duration_ns() / 1e9
    return found
