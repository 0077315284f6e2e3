"""Each kernel computes what torch does: to rounding in float32, and in bfloat16 no further from float32 than torch's own operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tunery.kernels import library, nf4
from tunery.kernels.gated import swiglu
from tunery.kernels.norm import rms_norm
from tunery.kernels.rotary import rotate
from tunery.methods import _fused_low_rank

pytestmark = pytest.mark.skipif(library.library() is None, reason="there is no C compiler here, so torch's own operations are used")

Function = Callable[..., torch.Tensor]


def norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """As transformers writes it."""
    y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
    return w * y.to(x.dtype)


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    x = x.view(1, len(x), -1, cos.shape[-1]).transpose(1, 2)
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def ours_turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return rotate(x.view(1, len(x), -1, cos.shape[-1]).transpose(1, 2), cos[None], sin[None])


def values(*shape: int, spread: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * spread


def results(f: Function, inputs: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """The output and the gradients of inputs in that type, whose values are those of bfloat16."""
    given = [i.bfloat16().to(dtype).requires_grad_() for i in inputs]
    out = f(*given)
    out.backward(values(*out.shape).bfloat16().to(dtype))
    return [t.detach().float() for t in (out, *(g.grad for g in given if g.grad is not None))]


def compare(ours: Function, plain: Function, inputs: list[torch.Tensor]) -> None:
    exact = results(plain, inputs, torch.float32)
    for a, b in zip(results(ours, inputs, torch.float32), exact, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    for a, b, true in zip(results(ours, inputs, torch.bfloat16), results(plain, inputs, torch.bfloat16), exact, strict=True):
        assert (a - true).norm() <= 1.2 * (b - true).norm() + 1e-6


@pytest.mark.parametrize(("rows", "width"), [(1, 8), (37, 576), (5, 50)])
def test_norm(rows: int, width: int) -> None:
    compare(lambda x, w: rms_norm(x, w, 1e-5), norm, [values(rows, width), values(width)])


@pytest.mark.parametrize("width", [3, 64, 1537])
def test_gated(width: int) -> None:
    compare(swiglu, lambda g, u: F.silu(g) * u, [values(1, 9, width, spread=4), values(1, 9, width + 0)])


def test_gate_and_up_in_one_tensor() -> None:
    compare(lambda x: swiglu(*x.chunk(2, -1)), lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], [values(2, 9, 40, spread=4)])


def test_the_ends_of_the_exponential() -> None:
    gate = torch.tensor([-1e30, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30, float("nan")])
    found = swiglu(gate, torch.ones(8))
    torch.testing.assert_close(found, F.silu(gate), equal_nan=True)


def test_rotary() -> None:
    cos, sin = values(11, 16), values(11, 16, spread=0.5)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [values(11, 48)]
        c, s = cos.bfloat16().to(dtype), sin.bfloat16().to(dtype)
        exact = results(lambda x: turned(x, cos.bfloat16().float(), sin.bfloat16().float()), inputs, torch.float32)
        for a, b in zip(results(lambda x, c=c, s=s: ours_turned(x, c, s), inputs, dtype), exact, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=1e-5 if dtype == torch.float32 else 0.01)


def test_rotary_of_one_token_in_each_row() -> None:
    cos, sin = values(11, 1, 16), values(11, 1, 16, spread=0.5)
    x = values(11, 3, 1, 16)
    a, b = x.chunk(2, -1)
    torch.testing.assert_close(rotate(x, cos, sin), x * cos[:, None] + torch.cat((-b, a), -1) * sin[:, None], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "width", "rank"), [(39, 1536, 16), (8, 32, 1), (3, 70, 5), (64, 32, 16), (150, 576, 40), (65, 96, 3), (70, 33, 4)]
)
def test_thin_product(rows: int, width: int, rank: int) -> None:
    """Also where the matrix unit makes it: 64 rows or more, whose width is a number of tiles; products by torch, which uses it too, between."""
    m = values(rank, width)
    for dtype in (torch.float32, torch.bfloat16):
        x = values(rows, width).to(dtype)
        before = x @ x.T
        torch.testing.assert_close(_fused_low_rank.thin_product(x, m), (x.double() @ m.T.double()).float(), atol=1e-4, rtol=1e-5)
        assert torch.equal(x @ x.T, before)


@pytest.mark.parametrize(("out", "width", "rank"), [(96, 64, 16), (70, 33, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_dora_product(out: int, width: int, rank: int, bias: bool) -> None:
    base = nn.Linear(width, out, bias=bias).requires_grad_(False)

    def ours(x: torch.Tensor, a: torch.Tensor, m: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return _fused_low_rank.product(x, base.to(x.dtype), a.float(), m.float(), gain.float())

    def plain(x: torch.Tensor, a: torch.Tensor, m: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        layer = base.to(x.dtype)
        y = (x @ layer.weight.T + (x @ a.T) @ m) * gain
        return y + layer.bias if bias else y

    base.bfloat16()
    compare(ours, plain, [values(39, width), values(rank, width, spread=0.1), values(rank, out, spread=0.1), 1 + values(out, spread=0.1)])


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bits(double: bool, dtype: torch.dtype) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    from tunery.methods import _nf4

    layer = _nf4.quantise(nn.Linear(576, 130, bias=False), double)
    found = nf4.dense(layer.weight.data, layer.weight.quant_state, dtype)
    assert found is not None
    with library.without():
        torch.testing.assert_close(found, layer.dense(dtype), atol=1e-7, rtol=1e-6)


def test_rows_that_are_no_whole_blocks_are_left_to_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    from tunery.methods import _nf4

    layer = _nf4.quantise(nn.Linear(160, 64, bias=False), double=True)
    assert nf4.dense(layer.weight.data, layer.weight.quant_state, torch.float32) is None
