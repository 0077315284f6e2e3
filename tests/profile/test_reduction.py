"""From records to sums, on records written by hand: what a GPU gives, and the rules by which an operation belongs to a part."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tunery.profile import alive, spent
from tunery.profile._watch import chosen
from tunery.profile.scope import STEP, Scope, scope_of


@dataclass
class Node:
    """As the profiler's tree has them; times in nanoseconds."""

    name: str
    start_time_ns: int
    duration_time_ns: int
    children: list[Any] = field(default_factory=list)
    correlation_id: int = 0
    extra_fields: Any = None
    tag: Any = field(default_factory=lambda: SimpleNamespace(name="TorchOp"))


def operation(name: str, start: int, duration: int, *children: Node, number: int = -1, id: int = 0, shapes: Any = ()) -> Node:
    inputs = [SimpleNamespace(sizes=list(s)) for s in shapes]
    return Node(name, start, duration, list(children), id, SimpleNamespace(sequence_number=number, inputs=inputs))


def step_on_a_device() -> list[Node]:
    product = operation("aten::mm", 20, 10, number=7, id=3, shapes=[(8, 16), (16, 32)])
    layer = operation(Scope("linear", 16, 32).label, 15, 20, product, id=2)
    model = operation(Scope("layers").label, 10, 30, layer, operation("aten::mul", 36, 2, id=4))
    step = operation(STEP, 0, 1000, model, id=1)
    backward = operation("aten::mm", 60, 10, id=5, shapes=[(8, 32), (32, 16)])
    node = operation("autograd::engine::evaluate_function: MmBackward0", 50, 40, backward, number=7)
    return [step, node]


def kernel(id: int, nanoseconds: int, device: str = "CUDA") -> Any:
    return SimpleNamespace(
        device_type=lambda: SimpleNamespace(name=device), linked_correlation_id=lambda: id, duration_ns=lambda: nanoseconds
    )


def test_on_a_device_kernels_count_where_they_were_launched_and_the_rest_is_idle() -> None:
    sums = spent.Spent()
    events = [kernel(3, 100), kernel(3, 50), kernel(5, 300), kernel(4, 20), kernel(2, 999), kernel(3, 77, "CPU")]
    spent.add(sums, step_on_a_device(), spent.kernels_of(iter(events)))
    found = {key: round(seconds * 1e9) for key, seconds in sums.seconds.items() if seconds}
    assert found == {("matrix", False): 150, ("matrix", True): 300, ("elementwise", False): 20, ("idle", False): 530}
    assert sum(found.values()) == round(sums.wall * 1e9) == 1000
    assert sums.flops == {"matrix": 2 * (2 * 8 * 16 * 32)}
    assert sums.product_seconds["matrix"] == pytest.approx(450e-9)


def test_on_a_cpu_every_moment_belongs_to_what_was_open() -> None:
    step, node = step_on_a_device()
    step.children.append(operation(Scope("backward").label, 45, 50, node))
    sums = spent.Spent()
    spent.add(sums, [step, operation("aten::mm", 0, 500)], None)  # what another thread does is not the step's
    found = {key: round(seconds * 1e9) for key, seconds in sums.seconds.items() if seconds}
    assert found == {
        ("matrix", False): 10,
        ("matrix", True): 10,
        ("elementwise", False): 2,
        ("python", False): 10 + 8 + (1000 - 30 - 50),
        ("python", True): 10 + 30,
    }
    assert sum(found.values()) == 1000


ADAPTER = Scope("adapter", 64, 160, 4)


@pytest.mark.parametrize(
    ("name", "scope", "shapes", "part"),
    [
        ("aten::mm", ADAPTER, [(30, 64), (64, 160)], "matrix"),
        ("aten::addmm_", ADAPTER, [(30, 160), (30, 4), (4, 160)], "adapter"),
        ("aten::mm", ADAPTER, [(30, 64), (64, 4)], "adapter"),
        ("aten::addmm", ADAPTER, [(160, 64), (160, 4), (4, 64)], "adapter"),  # a merged weight
        ("aten::mm", ADAPTER, [(160, 8), (8, 64)], "adapter"),  # twice the rank
        ("aten::mm", Scope("adapter", 64, 64, 4), [(64, 64), (64, 64)], "matrix"),
        ("aten::mm", Scope("adapter", 64, 160, 0), [(30, 64), (64, 160)], "adapter"),
        ("aten::mul", ADAPTER, [], "adapter"),
        ("aten::copy_", ADAPTER, [], "copies"),
        ("aten::copy_", Scope("optimiser"), [], "optimiser"),
        ("bitsandbytes::dequantize_4bit", ADAPTER, [], "dequantise"),
        ("aten::mm", Scope("layers"), [(30, 64), (64, 160)], "matrix"),
        ("aten::bmm", Scope("layers"), [(2, 30, 64), (2, 64, 30)], "attention"),
        ("aten::_softmax", Scope("layers"), [], "attention"),
        ("aten::bmm", Scope("rotary"), [(1, 16, 1), (1, 1, 30)], "elementwise"),
        ("aten::log", Scope("loss"), [], "head"),
        ("aten::mm", Scope("head"), [(1, 64), (64, 512)], "head"),
        ("c10d::allreduce_", Scope("backward"), [], "exchange"),
        ("FSDP::all_gather (model.layers.1)", Scope("layers"), [], "exchange"),
        ("c10d::_allgather_base_", Scope("optimiser"), [], "exchange"),
        ("_LowRank", ADAPTER, [], "python"),
        ("tunery::tile_attention_backward", Scope("backward"), [], "attention"),
        ("tunery::low_rank", ADAPTER, [], "matrix"),
        ("tunery::frozen_linear", Scope("linear"), [], "matrix"),
        ("tunery::head_loss", Scope("loss"), [], "head"),
        ("aten::add", Scope("step"), [], "other"),
    ],
)
def test_an_operation_belongs_to_a_part(name: str, scope: Scope, shapes: Any, part: str) -> None:
    assert spent.part_of(name, False, scope, shapes) == part
    assert scope_of(scope.label) == scope


@pytest.mark.parametrize(
    ("name", "shapes", "flops"),
    [
        ("aten::mm", [(3, 4), (4, 5)], 120),
        ("aten::addmm_", [(3, 5), (3, 4), (4, 5)], 120),
        ("aten::bmm", [(2, 3, 4), (2, 4, 5)], 240),
        ("aten::mm", [], 0),
        ("aten::mul", [(3, 4), (3, 4)], 0),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", [(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 4)], 4 * 24 * 5),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", [(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 5, 4)], 10 * 24 * 5),
        ("tunery::low_rank", [(3, 64), (3072, 1), (), (4, 64), (96, 4), *[()] * 4], 2 * 3 * (64 * 96 + 4 * 160)),
        ("tunery::low_rank_backward", [(3, 96), (3, 64), (96, 64), (), (4, 64), (96, 4), (3, 4), ()], 2 * 3 * (64 * 96 + 2 * 4 * 160)),
        ("tunery::low_rank_backward", [(3, 96), (3, 64), (), (), (4, 64), (96, 4), (3, 4), ()], 2 * 3 * 2 * 4 * 160),
        ("tunery::frozen_linear", [(3, 64), (96, 64), ()], 2 * 3 * 64 * 96),
        ("tunery::frozen_linear_backward", [(3, 96), (96, 64)], 2 * 3 * 64 * 96),
        ("tunery::head_loss", [(3, 64), (96, 64), (3,), (3,), ()], 4 * 3 * 64 * 96),
        ("tunery::head_loss", [(3, 64), (96, 64), (3,), (), ()], 2 * 3 * 64 * 96),
        ("tunery::tile_attention", [*[(1, 3, 90, 8)] * 3, (4,), (5,), (5, 32), (), ()], 4 * 3 * 8 * 5 * 1024),
        (
            "tunery::tile_attention_backward",
            [(1, 90, 3, 8), *[(1, 3, 90, 8)] * 3, (), (), (4,), (5,), (5, 32), (), ()],
            10 * 3 * 8 * 5 * 1024,
        ),
    ],
)
def test_operations_are_counted_from_shapes(name: str, shapes: Any, flops: int) -> None:
    assert spent.flops_of(name, shapes) == flops


def test_the_height_is_the_most_that_was_alive_at_once() -> None:
    forward, backward, loss, optimiser = (
        spent.Place(Scope(name), way) for name, way in (("adapter", False), ("adapter", True), ("loss", False), ("optimiser", False))
    )

    def block(address: int, size: int, place: Any, device: str = "cpu") -> tuple[Any, Any]:
        return SimpleNamespace(extra_fields=SimpleNamespace(ptr=address, alloc_size=size, device=SimpleNamespace(type=device))), place

    events = [
        block(99, -500, forward),  # was there before
        block(1, 100, forward),
        block(5, 1 << 30, forward, "cuda"),
        block(2, 50, loss),
        block(2, -50, loss),
        block(3, 30, backward),
        block(2, 40, backward),  # the address is used again
        block(1, -100, backward),
        block(3, -30, optimiser),
        block(4, 90, optimiser),
    ]
    assert alive.height(events, {3}, "cpu") == {"passing": {"kept": 100, "gradients": 30, "backward": 40}, "kept": {"adapter": 100}}


@pytest.mark.parametrize(
    ("first", "steps", "numbers"),
    [(1, 1, [1]), (1, 2, [2]), (1, 3, [2, 3]), (1, 5, [2, 3, 4]), (1, 10, [5, 6, 7]), (1, 5000, [101, 102, 103]), (9, 10, [10])],
)
def test_ordinary_steps_after_the_first_are_chosen(first: int, steps: int, numbers: list[int]) -> None:
    assert list(chosen(first, steps)) == numbers
    assert not [n for n in numbers if not first <= n <= steps]
