"""Learning with a head: a row's loss does not depend on its batch, and is what transformers' own class computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunery import tasks
from tunery.data.render import Sequence
from tunery.models.heads import Head
from tunery.models.load import load_model
from tunery.train import learners, padded

LABELS = ("a", "b", "c")


def rows(kind: str, count: int = 9, seed: int = 0) -> list[Sequence]:
    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        length = int(rng.integers(2, 30))
        marks, weights = np.full(length, -1, np.int32), np.zeros(length, np.float32)
        at = [0] if kind == "sequence" else sorted(rng.choice(length, max(1, length // 2), replace=False).tolist())
        marks[at], weights[at] = rng.integers(0, 3, len(at)), 1.0 + (n % 3) / 2
        found.append(Sequence(rng.integers(5, 400, length).astype(np.int32), weights, marks))
    return found


def model_of(folder: Path, kind: Any) -> Any:
    import torch

    model: Any = load_model(folder, head=Head(kind, LABELS), seed=3)
    head = model.classifier if hasattr(model, "classifier") else model.score
    torch.nn.init.normal_(head.weight, std=0.5, generator=torch.Generator().manual_seed(1))  # far from even chances
    return model.eval().requires_grad_(True)  # transformers puts dropout before a head


def total(model: Any, kind: str, chosen: list[Sequence]) -> tuple[float, float]:
    learner = learners.get(tasks.get({"sequence": "classify", "token": "tag"}[kind]))
    sums = [learner.loss(model, batch) for batch in learner.batches(model, chosen)]
    loss = sum(s[0] for s in sums)
    loss.backward()  # type: ignore[union-attr]
    return float(loss.detach()), float(sum(s[1] for s in sums))  # type: ignore[union-attr]


def gradient(model: Any) -> Any:
    import torch

    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("kind", ["sequence", "token"])
@pytest.mark.parametrize("folder", ["tiny_bert", "tiny_llama", "tiny_phi3"])
def test_batched_rows_are_what_each_is_alone(request: pytest.FixtureRequest, folder: str, kind: str) -> None:
    import torch

    model = model_of(request.getfixturevalue(folder), kind)
    chosen = rows(kind)
    together, weight = total(model, kind, chosen)
    one_gradient = gradient(model)
    alone = [total(model, kind, [row]) for row in chosen]
    assert weight == pytest.approx(sum(float(row.weights.sum()) for row in chosen))
    assert together == pytest.approx(sum(a for a, _ in alone), rel=1e-5)
    assert torch.dist(one_gradient, gradient(model)) <= 1e-5 * one_gradient.norm()


@pytest.mark.parametrize("kind", ["sequence", "token"])
@pytest.mark.parametrize("folder", ["tiny_bert", "tiny_qwen"])
def test_the_loss_is_that_of_transformers_own_class(request: pytest.FixtureRequest, folder: str, kind: str) -> None:
    import torch

    model = model_of(request.getfixturevalue(folder), kind)
    chosen = [Sequence(r.tokens, (r.weights > 0).astype(np.float32), r.marks) for r in rows(kind, 5)]
    ours, weight = total(model, kind, chosen)
    longest = max(len(r.tokens) for r in chosen)
    ids = torch.full((len(chosen), longest), model.config.get_text_config().pad_token_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for n, r in enumerate(chosen):
        ids[n, : len(r.tokens)], mask[n, : len(r.tokens)] = torch.from_numpy(r.tokens).long(), 1
        assert r.marks is not None
        labels[n, : len(r.tokens)] = torch.from_numpy(np.where(r.marks >= 0, r.marks, -100)).long()
    theirs = model(input_ids=ids, attention_mask=mask, labels=labels[:, 0] if kind == "sequence" else labels).loss
    assert ours / weight == pytest.approx(float(theirs.detach()), rel=1e-5)


def test_batches_keep_to_their_budget_and_lose_no_row() -> None:
    chosen = rows("token", 60)
    batches = list(padded.batches(chosen, pad=0, tokens=64))
    assert sorted(n for b in batches for n in b.rows.tolist()) == list(range(60))
    assert all(b.ids.size <= 64 or len(b.ids) == 1 for b in batches)
    assert len(batches) < 60
    for b in batches:
        for n, row in enumerate(b.rows.tolist()):
            assert b.ids[n][b.mask[n] == 1].tolist() == chosen[row].tokens.tolist()
    assert [len(b.ids) for b in padded.batches(chosen, pad=0, tokens=1)] == [1] * 60


def test_what_a_model_gives_is_cut_to_each_rows_own_tokens() -> None:
    (batch,) = padded.batches(rows("token", 3), pad=0)
    values = np.arange(batch.ids.size * 2, dtype=np.float32).reshape(*batch.ids.shape, 2)
    own = batch.cut(values, "token")
    assert {n: len(v) for n, v in own.items()} == {n: len(r.tokens) for n, r in enumerate(rows("token", 3))}
    assert np.array_equal(batch.cut(values[:, 0], "sequence")[int(batch.rows[1])], values[1, 0])
