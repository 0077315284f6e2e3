"""An adapted layer in tiles is no further from exact than the same layer by torch's operations and the other kernels."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tunery.kernels import library
from tunery.methods import _tile_low_rank
from tunery.methods._lora_linear import LoraLinear

pytestmark = pytest.mark.skipif(not library.tiles(), reason="this processor does not multiply bfloat16")


def layer(width: int, out: int, rank: int, bias: bool, dora: bool) -> LoraLinear:
    generator = torch.Generator().manual_seed(width + out + rank)
    base = nn.Linear(width, out, bias=bias)
    with torch.no_grad():
        for p in base.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / width**0.5)
    made = LoraLinear(base.requires_grad_(False), rank, 0.7, 0.0, generator, dora)
    with torch.no_grad():
        made.lora_B.copy_(torch.randn(out, rank, generator=generator) / rank**0.5)
        if dora:
            made.lora_magnitude_vector.mul_(1 + 0.1 * torch.randn(out, generator=generator))
    return made


def results(made: LoraLinear, x: torch.Tensor, wants_dx: bool = True) -> dict[str, torch.Tensor]:
    """The output and every gradient, by name."""
    x = x.detach().clone().requires_grad_(wants_dx)
    y = made(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y.dtype)
    learned = {n: p for n, p in made.named_parameters() if p.requires_grad}
    inputs = [*learned.values(), *([x] if wants_dx else [])]
    return {"y": y.detach(), **dict(zip([*learned, "x"], torch.autograd.grad(y, inputs, grad), strict=False))}


def compare(made: LoraLinear, rows: tuple[int, ...], wants_dx: bool = True) -> None:
    made.base.bfloat16()
    x = torch.randn(*rows, made.base.in_features, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert _tile_low_rank.able(x, made.base)
    ours = results(made, x, wants_dx)
    with library.without():
        torchs = results(made, x, wants_dx)
    exact = results(made.float(), x.float(), wants_dx)
    assert ours.keys() == torchs.keys() == exact.keys()
    for name, true in exact.items():
        off, theirs = ((found[name].double() - true).norm() for found in (ours, torchs))
        # Or, where torch's way is float32 throughout, what rounding a few factors to bfloat16 gives (2⁻⁹ each).
        assert off <= max(1.25 * theirs, 4e-3 * true.norm()), name


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(32, 150)) | st.tuples(st.just(1), st.integers(32, 70)),
    st.sampled_from([(32, 32), (64, 160), (192, 96), (640, 64), (1216, 32)]),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
)
def test_any_shape(rows: tuple[int, ...], sizes: tuple[int, int], rank: int, bias: bool, dora: bool) -> None:
    compare(layer(*sizes, rank, bias, dora), rows)


@pytest.mark.parametrize("dora", [False, True])
def test_no_gradient_for_the_input_where_nobody_asks(dora: bool) -> None:
    compare(layer(64, 96, 8, True, dora), (50,), wants_dx=False)


@pytest.mark.parametrize("threads", [1, 3, 7, 16])
def test_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        compare(layer(96, 160, 16, False, True), (70,))
        made, x = layer(96, 160, 16, False, True), torch.randn(70, 96, generator=torch.Generator().manual_seed(3)).bfloat16()
        made.base.bfloat16()
        first, second = results(made, x), results(made, x)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("x", "base"),
    [
        (torch.zeros(31, 64, dtype=torch.bfloat16), nn.Linear(64, 64, dtype=torch.bfloat16)),
        (torch.zeros(40, 48, dtype=torch.bfloat16), nn.Linear(48, 64, dtype=torch.bfloat16)),
        (torch.zeros(40, 64, dtype=torch.bfloat16), nn.Linear(64, 40, dtype=torch.bfloat16)),
        (torch.zeros(40, 64), nn.Linear(64, 64)),
        (torch.zeros(40, 64, dtype=torch.bfloat16), nn.Linear(64, 64)),
    ],
)
def test_what_it_cannot_take_goes_the_other_way(x: torch.Tensor, base: nn.Linear) -> None:
    assert not _tile_low_rank.able(x, base)


def test_rows_that_are_no_block_do_not_touch_what_lies_behind_them() -> None:
    """A result inside a larger tensor: what surrounds it stays."""
    made = layer(64, 96, 8, False, False)
    made.base.bfloat16()
    x = torch.randn(45, 64).bfloat16()
    around: Any = torch.full((60, 96), 7.0, dtype=torch.bfloat16)
    thin = torch.zeros(45, 8, dtype=torch.bfloat16)
    given = (
        x,
        made.base.weight,
        *[None] * 7,
        made.lora_A,
        made.lora_B,
        0.7,
        None,
        None,
        None,
        around[5:50],
        thin,
        None,
        None,
        None,
        45,
        64,
        96,
        8,
    )
    assert library.call("tile_low_rank", torch.bfloat16, *given) == 0
    assert (around[:5] == 7).all()
    assert (around[50:] == 7).all()


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dora", [True, False])
def test_four_bits_are_what_they_stand_for(double: bool, dora: bool) -> None:
    _nf4 = pytest.importorskip("tunery.methods._nf4")
    made = layer(192, 96, 8, False, dora)
    coded = _nf4.quantise(made.base, double)
    made.base = nn.Linear(192, 96, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    made.base.weight.data = coded.dense(torch.bfloat16)
    x = torch.randn(70, 192, generator=torch.Generator().manual_seed(3)).bfloat16()
    written_out = results(made, x)
    made.base = coded
    in_four = results(made, x)
    assert all(torch.equal(written_out[name], in_four[name]) for name in written_out)


def test_a_magnitude_of_nothing_learns_too() -> None:
    """Its row of the result is 0, so what the gain multiplies is kept beside it."""
    made = layer(64, 96, 8, False, True)
    with torch.no_grad():
        made.lora_magnitude_vector[5] = 0
    compare(made, (40,))
    made.base.bfloat16()
    found = results(made, torch.randn(40, 64).bfloat16())
    assert not found["y"][:, 5].any()
    assert found["lora_magnitude_vector"][5] != 0


@pytest.mark.parametrize("dora", [True, False])
def test_rows_and_gradients_that_lie_apart(dora: bool) -> None:
    """As the first token of each row has them, of which a classifier's layers are given a view."""
    made = layer(64, 96, 8, False, dora)
    made.base.bfloat16()
    whole = torch.randn(40, 5, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    together, apart = (x.clone().requires_grad_() for x in (whole[:, 0], whole))
    grads = []
    for x, y in ((together, made(together)), (apart, made(apart[:, 0]))):
        spread = torch.randn(40, 192, generator=torch.Generator().manual_seed(4)).bfloat16()[:, ::2]
        grads.append([y.detach(), *torch.autograd.grad(y, [x, made.lora_A, made.lora_B], spread)])
    grads[1][1] = grads[1][1][:, 0]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("dora", [True, False])
def test_an_adapter_that_was_cast_is_read_as_what_it_says(dora: bool) -> None:
    """As after `model.to(torch.bfloat16)`: the kernel itself reads float32."""
    made = layer(64, 96, 8, False, dora)
    made.base.bfloat16()
    for p in made.parameters():
        p.data = p.data.bfloat16()
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    cast = results(made, x)
    for name, p in made.named_parameters():
        p.data = p.data if name.startswith("base.") else p.data.float()
    whole = results(made, x)
    assert all(torch.equal(cast[name], whole[name].to(cast[name].dtype)) for name in whole)
