"""Learning from pairs: both sides of each pair through the model, their shared prompt computed once.

A batch holds whole pairs. What a step needs to know of all its pairs before any gradient (KTO's baseline, the number of tokens of the
preferred answers) is computed in `begin_step`, from the whole step, so it does not matter into how many batches or processes it is cut.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch

from tunery.progress import Progress
from tunery.run import Run
from tunery.tasks import Task
from tunery.tasks.preference import Options, pair_losses
from tunery.train import reference
from tunery.train.forward import PACK_TOKENS, log_probs, packs_for
from tunery.train.packs import Pack, TokenRow
from tunery.train.reference import PairRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel


NEAR = 64
"""Rows among which another prompt is looked for; in data with one prompt for all there is none."""


@dataclass(frozen=True)
class Side:
    """One answer after its prompt; see `packs.TokenRow`."""

    tokens: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Pair:
    """One row of a step. `reference`: (2,) float32 summed log-probabilities under the reference model, where the loss has one."""

    tokens: np.ndarray
    weights: np.ndarray
    marks: np.ndarray
    reference: np.ndarray | None

    @property
    def sides(self) -> tuple[Side, Side]:
        """The preferred answer and the other, each after the prompt."""
        return sides_of(self)


class _Rows(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> PairRow: ...
    @property
    def lengths(self) -> np.ndarray: ...


class Pairs:
    """Tokenised pairs with what the reference says of them: rows for the training loop, each of weight 1."""

    def __init__(self, rows: _Rows, options: Options, known: dict[str, np.ndarray]) -> None:
        self.rows, self.known = rows, known
        self.lengths = np.asarray(rows.lengths)
        self.supervised = np.ones(len(rows))
        self.nll_weights = np.ones(len(rows))
        if options.nll_weight:
            self.nll_weights = np.array([_nll_side(sides_of(rows[n])[0], options).weights.sum() for n in range(len(rows))])
        """(N,) what the tokens of each preferred answer weigh in the NLL part."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        row = self.rows[index]
        matched = self.known.get("matched")
        assert row.marks is not None
        return Pair(row.tokens, row.weights, row.marks, None if matched is None else matched[index])


@dataclass(frozen=True)
class Batch:
    """P pairs, and the packs that hold their 2 P sides: side 2 p is the preferred one of pair p."""

    pairs: list[Pair]
    packs: list[Pack]


class Learner:
    """See `learners.Learner`."""

    def __init__(self, task: Task, options: Options, share_prefixes: bool) -> None:
        self.options, self.share = options, share_prefixes
        self.baseline: float | None = None
        self.nll_scale: float | None = None

    def before_training(self, model: PreTrainedModel, rows: _Rows, run: Run, name: str, progress: Progress) -> Pairs:
        """The rows with the reference's log-probabilities, which are `model`'s as it is now, or those that the run already has.

        model: the base, before a method changes it. name: `train` or `valid`, under which they are kept in the run directory.
        """
        if not self.options.needs_reference:
            return Pairs(rows, self.options, {})
        mismatched = self.options.loss == "kto"
        every = [rows[n] for n in range(len(rows))]
        known = reference.identity(every, mismatched, getattr(rows, "max_length", None))
        found = reference.read(run, name, known)
        if found is None:
            training, what = model.training, f"reference: {name}"
            model.eval()
            sides = [side for row in every for side in sides_of(row)]
            found = {"matched": reference.side_log_probs(model, sides, progress, what).reshape(-1, 2)}
            if mismatched:
                others = [side for n in range(len(rows)) for side in mismatched_sides(rows, n)]
                what = f"reference: {name}, exchanged answers"
                found["mismatched"] = reference.side_log_probs(model, others, progress, what).reshape(-1, 2)
            model.train(training)
            reference.write(run, name, known, found)
        return Pairs(rows, self.options, found)

    def begin_step(self, model: PreTrainedModel, rows: Pairs, chosen: np.ndarray) -> None:
        """Look at the whole step, whose pairs are `rows[chosen]`: KTO's baseline and what the NLL part is divided by."""
        self.nll_scale = len(chosen) / float(rows.nll_weights[chosen].sum())
        if self.options.loss == "kto":
            self.baseline = divergence(model, rows, chosen, self.share)

    def batches(self, model: PreTrainedModel, rows: Iterable[TokenRow]) -> Iterator[Batch]:
        """Pairs with the same prompt are neighbours, and a batch is about a pack."""
        pairs = sorted(cast(Iterable[Pair], rows), key=lambda p: p.sides[0].tokens.astype(">u4").tobytes())
        group: list[Pair] = []
        filled, last = 0, np.empty(0, np.int32)
        for pair in pairs:
            first, second = (side.tokens for side in pair.sides)
            cost = len(first) + len(second)
            if self.share:
                cost -= _common(first, second) + _common(last, first)
            if group and filled + cost > PACK_TOKENS:
                yield self._batch(model, group)
                group, filled = [], 0
                cost = len(first) + len(second) - (_common(first, second) if self.share else 0)
            group.append(pair)
            filled, last = filled + cost, first
        if group:
            yield self._batch(model, group)

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the pairs' losses, and their number."""
        sides = [side for pair in batch.pairs for side in pair.sides]
        weights = torch.zeros(len(sides), device=model.device)
        sums, nll = weights.clone(), weights.clone()
        for packed in batch.packs:
            found = log_probs(model, packed)
            answer = torch.tensor(_answer_weights(packed, sides), device=found.device)
            rows = torch.from_numpy(packed.rows).to(found.device)
            sums = sums.index_add(0, rows, found * answer)
            nll = nll.index_add(0, rows, -found * torch.from_numpy(packed.weights).to(found.device))
            weights = weights.index_add(0, rows, answer)
        fixed = None
        if self.options.needs_reference:
            assert all(p.reference is not None for p in batch.pairs), "the rows are not those of `before_training`"
            fixed = torch.from_numpy(np.stack([cast(np.ndarray, p.reference) for p in batch.pairs])).to(sums.device)
        baseline = self.baseline
        assert baseline is not None or self.options.loss != "kto", "`begin_step` was not called"
        losses = pair_losses(self.options, sums.view(-1, 2), weights.view(-1, 2), fixed, baseline if baseline is not None else 0.0)
        total = losses.sum()
        if self.options.nll_weight:
            assert self.nll_scale is not None, "`begin_step` was not called"
            total = total + self.options.nll_weight * self.nll_scale * nll.view(-1, 2)[:, 0].sum()
        return total, total.new_tensor(float(len(batch.pairs)))

    def _batch(self, model: PreTrainedModel, pairs: list[Pair]) -> Batch:
        sides: list[TokenRow] = []
        for pair in pairs:
            chosen, rejected = pair.sides
            sides += [_nll_side(chosen, self.options), rejected]
        return Batch(pairs, list(packs_for(model, sides, share=self.share, max_tokens=sys.maxsize)))


def sides_of(row: PairRow | Pair) -> tuple[Side, Side]:
    """The preferred answer and the other, each after the prompt."""
    assert row.marks is not None
    at = int(np.searchsorted(row.marks, 1))
    return Side(row.tokens[:at], row.weights[:at]), Side(row.tokens[at:], row.weights[at:])


def divergence(model: PreTrainedModel, rows: Pairs, chosen: np.ndarray, share: bool) -> float:
    """KTO's baseline: how much likelier answers to other prompts have become, in the mean over the step, and at least 0 (equation 8).

    It is measured without dropout, and draws no random numbers.
    """
    training = model.training
    model.eval()
    sides = [side for n in chosen.tolist() for side in mismatched_sides(rows.rows, n)]
    now = reference.side_log_probs(model, sides, share=share)
    model.train(training)
    return max(0.0, float((now - rows.known["mismatched"][chosen].reshape(-1)).mean(dtype=np.float64)))


def mismatched_sides(rows: _Rows, index: int) -> tuple[Side, Side]:
    """The prompt of one pair with both answers of another, as KTO's baseline is measured on.

    The other pair is the nearest one before it that has another prompt, so it does not depend on the step. (In a step, TRL takes the row
    before; over the whole data both are the same answers.)
    """
    own = sides_of(rows[index])
    prompts = [side.tokens[: _begin(side)] for side in own]
    other = (index - 1) % len(rows)
    for candidate in ((index - back) % len(rows) for back in range(1, min(len(rows), NEAR) + 1)):
        side = sides_of(rows[candidate])[0]
        if not np.array_equal(side.tokens[: _begin(side)], prompts[0]):
            other = candidate
            break
    longest = getattr(rows, "max_length", None)
    found = []
    for prompt, side in zip(prompts, sides_of(rows[other]), strict=True):
        at = _begin(side)
        tokens = np.concatenate([prompt, side.tokens[at:]])[:longest]
        weights = np.concatenate([np.zeros(len(prompt), np.float32), side.weights[at:]])[:longest]
        found.append(Side(tokens, weights))
    return found[0], found[1]


def _begin(side: Side) -> int:
    """Where the answer begins."""
    return int(np.flatnonzero(side.weights)[0])


def _nll_side(chosen: Side, options: Options) -> Side:
    """The preferred side with the weights that its tokens have in the NLL part."""
    if not options.nll_on_prompt:
        return chosen
    weights = np.ones(len(chosen.tokens), np.float32)
    weights[:1] = 0  # nothing comes before it
    return Side(chosen.tokens, weights)


def _answer_weights(packed: Pack, sides: Sequence[Side]) -> np.ndarray:
    """(S,) float32: the weight of each of the pack's predictions in its answer; 0 on prompts, which only the NLL part may count."""
    place = packed.positions[packed.source] + 1  # of the predicted token in its row
    return np.array([sides[row].weights[at] for row, at in zip(packed.rows.tolist(), place.tolist(), strict=True)], np.float32)


def _common(first: np.ndarray, second: np.ndarray) -> int:
    n = min(len(first), len(second))
    differing = np.flatnonzero(first[:n] != second[:n])
    return int(differing[0]) if len(differing) else n
