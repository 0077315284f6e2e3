"""The fused cross-entropy against autograd's own, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tunery.train import _head_loss

WIDTH, VOCABULARY, ROWS = 24, 96, 37


def case(trained: bool, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, nn.Linear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    output = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype)
    with torch.no_grad():
        output.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator))
    output.weight.requires_grad_(trained)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    weights = torch.rand(ROWS, generator=generator)
    weights[::5] = 0
    return hidden, output, targets, weights


def gradients(value: torch.Tensor, *of: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, of))


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_the_sum_and_its_gradients_are_autograds(trained: bool, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_head_loss, "LOGITS", 16)  # three parts, the last one short
    monkeypatch.setattr(_head_loss, "TILE", 5 * VOCABULARY)
    hidden, output, targets, weights = case(trained)
    of = (hidden, output.weight) if trained else (hidden,)
    expected = (cross_entropy(hidden.double() @ output.weight.double().T * factor, targets, reduction="none") * weights).sum()
    found = _head_loss.summed(hidden, output, targets, weights, factor)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    for mine, theirs in zip(gradients(found * 0.7, *of), gradients(expected * 0.7, *of), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_each_rows_nats_and_their_gradients_are_autograds(trained: bool, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_head_loss, "LOGITS", 16)
    monkeypatch.setattr(_head_loss, "TILE", 5 * VOCABULARY)
    hidden, output, targets, weights = case(trained)
    of = (hidden, output.weight) if trained else (hidden,)
    expected = cross_entropy(hidden.double() @ output.weight.double().T * factor, targets, reduction="none")
    found = _head_loss.nats(hidden, output, targets, factor)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(gradients(found.square() @ weights, *of), gradients(expected.square() @ weights.double(), *of), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_it_is_no_further_from_float32_than_autograd() -> None:
    hidden, output, targets, weights = case(trained=False)
    exact = (cross_entropy(hidden @ output.weight.T, targets, reduction="none") * weights).sum()
    (exact_gradient,) = gradients(exact, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = (cross_entropy(output(hidden).float(), targets, reduction="none") * weights).sum()
        mine = _head_loss.summed(hidden, output, targets, weights)
    assert mine.dtype == torch.float32
    assert abs(mine - exact) <= 1.2 * abs(theirs - exact) + 1e-4
    distance = [float((gradients(x, hidden)[0] - exact_gradient).norm()) for x in (mine, theirs)]
    assert 0 < distance[0] <= 1.2 * distance[1]


def test_an_evaluation_asks_for_no_gradient() -> None:
    hidden, output, targets, weights = case(trained=False)
    with torch.no_grad():
        found = _head_loss.summed(hidden, output, targets, weights)
    assert not found.requires_grad
    torch.testing.assert_close(found, (_head_loss.nats(hidden, output, targets) * weights).sum())


def test_no_rows_are_a_sum_of_nothing() -> None:
    hidden, output, targets, weights = (x[:0] if isinstance(x, torch.Tensor) else x for x in case(trained=True))
    total = _head_loss.summed(hidden, output, targets, weights)
    assert float(total) == 0
    assert all(not bool(g.any()) for g in gradients(total, hidden, output.weight))


@pytest.mark.parametrize(
    ("output", "known"),
    [
        (nn.Linear(4, 8, bias=False), True),
        (nn.Linear(4, 8), False),
        (nn.Identity(), False),
        (nn.Sequential(nn.Linear(4, 8, bias=False)), False),
    ],
    ids=["plain", "with a bias", "no matrix", "another module"],
)
def test_only_an_ordinary_matrix_is_taken(output: nn.Module, known: bool) -> None:
    assert _head_loss.plain(output) is known
