"""Attention in blocks equals attention over the whole, whatever the mask hides."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import TokenRow

from tunery.kernels import library
from tunery.train import _block_attention
from tunery.train.packs import pack

D = 8


def tensors(tokens: int, heads: int, key_heads: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    sizes = (heads, key_heads, key_heads)
    return [torch.randn(1, n, tokens, D, generator=generator).to(dtype).requires_grad_() for n in sizes]


def whole(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: np.ndarray, scale: float | None) -> torch.Tensor:
    """By hand, in float32: (1, T, heads, d)."""
    groups = q.shape[1] // k.shape[1]
    q, k, v = q.float(), k.float().repeat_interleave(groups, 1), v.float().repeat_interleave(groups, 1)
    scores = (q @ k.transpose(-1, -2) * (scale or D**-0.5)).masked_fill(~torch.from_numpy(allowed), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def both(inputs: list[torch.Tensor], allowed: np.ndarray, scale: float | None = None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(output and three gradients) in blocks, and by hand."""
    q, k, v = inputs
    blocks = _block_attention.cut(allowed, q.shape[1] // k.shape[1], q.dtype, q.device)
    found = []
    for out in (_block_attention.attend(q, k, v, blocks, scale), whole(q, k, v, allowed, scale)):
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
        found.append([out.detach(), *torch.autograd.grad(out, inputs, grad)])
    return found[0], found[1]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=60), min_size=1, max_size=12),
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    st.sampled_from([None, 0.5]),
    st.integers(1, 8),
)
def test_any_tree_of_rows(rows: list[list[int]], heads: tuple[int, int], scale: float | None, window: int) -> None:
    given_rows = [TokenRow(np.array(r, np.int32), np.ones(len(r), np.float32)) for r in rows]
    for packed in pack(given_rows, 1000):
        near = np.abs(packed.positions[:, None] - packed.positions[None]) < window  # as a sliding window has it
        for allowed in (packed.mask(), packed.mask() & near):
            ours, exact = both(tensors(len(allowed), *heads), allowed, scale)
            for a, b in zip(ours, exact, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 300])
def test_every_length(tokens: int) -> None:
    ours, exact = both(tensors(tokens, 4, 2), np.tri(tokens, dtype=bool))
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_in_bfloat16_no_further_from_float32_than_torchs_own() -> None:
    allowed = np.tri(300, dtype=bool)
    low = tensors(300, 4, 2, torch.bfloat16)
    ours, exact = both(low, allowed)
    q, k, v = low
    mask = torch.zeros(300, 300, dtype=q.dtype).masked_fill(torch.from_numpy(~allowed), float("-inf"))
    out = torch.nn.functional.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), mask).transpose(1, 2)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    torchs = [out.detach(), *torch.autograd.grad(out, low, grad)]
    for a, b, t in zip(ours, exact, torchs, strict=True):
        assert 0 < (a.float() - b.float()).norm() <= 1.2 * (t.float() - b.float()).norm()


def test_what_is_hidden_is_skipped() -> None:
    """Of 40 rows that see eight common tokens and their own eight, less than a third of the pairs is computed."""
    rows = [TokenRow(np.r_[np.arange(8), 100 + n * 8 + np.arange(9)].astype(np.int32), np.ones(17, np.float32)) for n in range(40)]
    (packed,) = pack(rows, 1000)
    blocks = _block_attention.cut(packed.mask(), 1, torch.float32, torch.device("cpu"))
    assert sum(g.keys.numel() * blocks.size for g in blocks.groups) < len(packed.tokens) ** 2 / 3


def test_bfloat16_is_no_further_from_float32_than_torchs_own_kernel() -> None:
    allowed = np.tri(300, dtype=bool)
    allowed[150:, 20:150] = False
    rounded = [t.detach().bfloat16() for t in tensors(300, 6, 2)]
    exact, _ = both([t.float().requires_grad_() for t in rounded], allowed)
    ours, _ = both([t.clone().requires_grad_() for t in rounded], allowed)
    with library.without():
        plain, _ = both([t.clone().requires_grad_() for t in rounded], allowed)
    for a, b, true in zip(ours, plain, exact, strict=True):
        assert (a.float() - true).norm() <= 1.2 * (b.float() - true).norm()
