"""Attention in tiles is no further from exact attention than torch's own kernel, whatever the mask hides."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import TokenRow

from tunery.kernels import library
from tunery.train import _tile_attention
from tunery.train.packs import pack

pytestmark = pytest.mark.skipif(not library.tiles(), reason="this processor does not multiply bfloat16")


def tensors(tokens: int, heads: int, key_heads: int, d: int) -> list[torch.Tensor]:
    """Laid out as a model's layers have them: token by token."""
    generator = torch.Generator().manual_seed(tokens)
    sizes = (heads, key_heads, key_heads)
    return [torch.randn(1, tokens, n, d, generator=generator).bfloat16().transpose(1, 2).requires_grad_() for n in sizes]


def results(attend: object, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output, (1, T, heads, d), and three gradients."""
    out = attend(*inputs)  # type: ignore[operator]
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def dense(allowed: np.ndarray, scale: float | None, dtype: torch.dtype) -> object:
    """By torch's own kernel over the whole, in this type."""
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(torch.from_numpy(~allowed), float("-inf"))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        groups = q.shape[1] // k.shape[1]
        q, k, v = q.to(dtype), *(x.to(dtype).repeat_interleave(groups, 1) for x in (k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale).transpose(1, 2)

    return attend


def compare(allowed: np.ndarray, heads: tuple[int, int], d: int, scale: float | None = None) -> None:
    inputs = tensors(len(allowed), *heads, d)
    ours = results(lambda q, k, v: _tile_attention.attend(q, k, v, _tile_attention.pairs(allowed), scale), inputs)
    exact, torchs = (results(dense(allowed, scale, dtype), inputs) for dtype in (torch.float64, torch.bfloat16))
    for a, b, t in zip(ours, exact, torchs, strict=True):
        rounding = 3e-6 * a.numel() ** 0.5  # of float32, where the exact gradient is 0
        assert (a.double() - b.double()).norm() <= 1.1 * (t.double() - b.double()).norm() + 1e-3 * b.double().norm() + rounding


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=60), min_size=1, max_size=12),
    st.sampled_from([((4, 4), 32), ((9, 3), 64), ((10, 1), 32), ((2, 2), 96)]),
    st.sampled_from([None, 0.5]),
    st.integers(1, 8),
)
def test_any_tree_of_rows(rows: list[list[int]], heads: tuple[tuple[int, int], int], scale: float | None, window: int) -> None:
    given_rows = [TokenRow(np.array(r, np.int32), np.ones(len(r), np.float32)) for r in rows]
    for packed in pack(given_rows, 1000):
        near = np.abs(packed.positions[:, None] - packed.positions[None]) < window  # as a sliding window has it
        for allowed in (packed.mask(), packed.mask() & near):
            compare(allowed, *heads, scale)


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 300, 1025])
def test_every_length(tokens: int) -> None:
    compare(np.tri(tokens, dtype=bool), (6, 2), 64)


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 20])
def test_threads_change_nothing_but_rounding_and_one_number_of_them_gives_one_result(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        compare(np.tri(200, dtype=bool), (6, 3), 64)
        inputs, among = tensors(200, 6, 3, 64), _tile_attention.pairs(np.tri(200, dtype=bool))
        first, second = (results(lambda q, k, v: _tile_attention.attend(q, k, v, among, None), inputs) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_query_that_sees_nothing_gets_nothing_and_hidden_values_do_not_matter() -> None:
    allowed = np.tri(70, dtype=bool)
    allowed[40] = False
    allowed[:, 50] = False
    inputs = tensors(70, 2, 2, 32)
    with torch.no_grad():
        for x in inputs[1:]:
            x[:, :, 50] = 3e38
    out, dq, dk, dv = results(lambda q, k, v: _tile_attention.attend(q, k, v, _tile_attention.pairs(allowed), None), inputs)
    assert all(x.isfinite().all() for x in (out, dq, dk, dv))
    assert not out[:, 40].any()
    assert not dq[:, :, 40].any()
    assert not dk[:, :, 50].any()
    assert not dv[:, :, 50].any()


def test_any_strides() -> None:
    """Values of a head side by side or not, as slices of a layer that makes queries, keys and values at once, or turned."""
    joined = torch.randn(1, 90, 3 * 4 * 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    slices = [x.view(1, 90, 4, 32).transpose(1, 2).requires_grad_() for x in joined.split(128, -1)]
    turned = [x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for x in slices]
    among = _tile_attention.pairs(np.tri(90, dtype=bool))
    first, second = (results(lambda q, k, v: _tile_attention.attend(q, k, v, among, None), x) for x in (slices, turned))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_is_hidden_is_skipped() -> None:
    """Of 40 rows that see eight common tokens and their own eight, less than a third of the pairs is computed."""
    rows = [TokenRow(np.r_[np.arange(8), 100 + n * 8 + np.arange(9)].astype(np.int32), np.ones(17, np.float32)) for n in range(40)]
    (packed,) = pack(rows, 1000)
    assert _tile_attention.pairs(packed.mask()).bits.numel() * 32 < len(packed.tokens) ** 2 / 3


@pytest.mark.parametrize("before", [1, 36, 64])
def test_more_keys_than_queries(before: int) -> None:
    """As after a beginning that was read already: every query sees that and what it sees of its own pack."""
    tokens = 75
    q, k, v = tensors(before + tokens, 6, 2, 64)
    allowed = np.tri(tokens, before + tokens, before, dtype=bool)
    with torch.no_grad():
        q = q[:, :, before:]
        ours = _tile_attention.attend(q, k, v, _tile_attention.pairs(allowed), None)
        exact, torchs = (dense(allowed, None, dtype)(q, k, v) for dtype in (torch.float64, torch.bfloat16))  # type: ignore[operator]
    assert ours.shape == exact.shape
    assert (ours.double() - exact).norm() <= 1.1 * (torchs.double() - exact).norm()
