"""A frozen linear layer in tiles is no further from exact than torch's own product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tunery.kernels import library
from tunery.kernels.tile_linear import TileLinear

pytestmark = pytest.mark.skipif(not library.tiles(), reason="this processor does not multiply bfloat16")


def layer(width: int, out: int, bias: bool) -> nn.Linear:
    made = nn.Linear(width, out, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(width)) / width**0.5)
    return made


def results(made: nn.Linear, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    y = made(x)
    (dx,) = torch.autograd.grad(y, x, torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y.dtype))
    return y.detach(), dx


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(st.integers(32, 150)) | st.tuples(st.just(2), st.integers(16, 70)),
    st.sampled_from([(32, 32), (64, 160), (640, 96), (1216, 32)]),
    st.booleans(),
)
def test_any_shape(rows: tuple[int, ...], sizes: tuple[int, int], bias: bool) -> None:
    made = layer(*sizes, bias)
    x = torch.randn(*rows, sizes[0], generator=torch.Generator().manual_seed(2)).bfloat16()
    torchs = results(made, x)
    made.__class__ = TileLinear
    ours = results(made, x)
    exact = results(made.float(), x.float())
    for a, t, true in zip(ours, torchs, exact, strict=True):
        assert (a.float() - true).norm() <= 1.1 * (t.float() - true).norm() + 1e-4 * true.norm()


@pytest.mark.parametrize("change", ["learns", "few rows", "an odd width", "float32"])
def test_anything_else_is_torchs(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer(48 if change == "an odd width" else 64, 32, True)
    made.__class__ = TileLinear
    if change == "learns":
        made.requires_grad_(True)
    dtype = torch.float32 if change == "float32" else torch.bfloat16
    x = torch.randn(8 if change == "few rows" else 40, made.in_features).to(dtype)
    monkeypatch.setattr(library, "call", lambda *a: pytest.fail("the kernel was called"))
    made.to(dtype)
    assert torch.equal(made(x), nn.functional.linear(x, made.weight, made.bias))


def test_rows_that_lie_apart() -> None:
    made = layer(64, 96, True)
    made.__class__ = TileLinear
    whole = torch.randn(40, 5, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert torch.equal(made(whole[:, 0]), made(whole[:, 0].clone()))


def test_others_may_add_to_its_result_in_place() -> None:
    made = layer(64, 96, False)
    made.__class__ = TileLinear
    x = torch.randn(2, 40, 64).bfloat16().requires_grad_()
    y = made(x)
    y += 1
    y.sum().backward()
    assert x.grad is not None
