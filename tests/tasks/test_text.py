"""Continued pretraining: documents are joined and cut, and nothing is lost or learned twice."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunery import tasks
from tunery.data.render import Renderer
from tunery.data.rows import read_rows
from tunery.data.tokenised import Tokenised, tokenise
from tunery.models.load import load_model, load_tokenizer
from tunery.progress import Quiet
from tunery.recipe import from_mapping
from tunery.run import Run
from tunery.train import attention, forward, learners
from tunery.train.loop import Settings, accumulate, train

LONGEST = 40
"""Tokens of a row: some of the documents are longer, most are shorter."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 1 to 200 tokens."""
    folder = tmp_path_factory.mktemp("documents")
    rng = random.Random(0)
    words = ["the cat", "a river", "finds", "cold water", "and", "the news", "reads", "Zebra", "."]
    documents = [" ".join(rng.choice(words) for _ in range(rng.choice([1, 3, 8, 12, 60, 110]))) for _ in range(24)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    return folder


def view_of(folder: Path, model: Path, longest: int = LONGEST) -> tuple[Tokenised, list[Any]]:
    """(what is trained on, each document's whole sequence)."""
    renderer = Renderer(load_tokenizer(model))
    stored = tokenise(str(folder / "a.jsonl"), None, renderer, folder / "cache")
    whole = [s for row in read_rows(str(folder / "a.jsonl")) for s in renderer.sequences(row)]
    return Tokenised([(stored, np.arange(len(stored.lines)))], longest), whole


def one_by_one(model: Any, documents: list[Any], longest: int) -> tuple[float, int]:
    """Summed nats and number of predictions, by transformers alone: each document by itself, in windows of `longest` tokens that overlap by
    one, so that each token but the first is predicted once."""
    model.set_attn_implementation("eager")
    nats, count = 0.0, 0
    with torch.no_grad():
        for document in documents:
            ids = torch.from_numpy(document.tokens.astype(np.int64))[None]
            for start in range(0, ids.shape[1] - 1, longest - 1):
                window = ids[:, start : start + longest]
                logits = model(input_ids=window).logits[0, :-1]
                nats += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
                count += window.shape[1] - 1
    return nats, count


def test_an_epoch_is_the_documents_one_by_one(folder: Path, tiny_any: Path) -> None:
    """Whatever the packs, shared beginnings included, count and loss are those of the documents alone: no border is seen through."""
    view, documents = view_of(folder, tiny_any)
    model = load_model(tiny_any, attention=attention.register())
    learner = learners.get(tasks.get("text"))
    with torch.no_grad():
        batches = list(learner.batches(model, (view[n] for n in range(len(view)))))
        sums = [learner.loss(model, batch) for batch in batches]
    nats, weight = sum(n.item() for n, _ in sums), sum(w.item() for _, w in sums)
    expected, count = one_by_one(model, documents, LONGEST)
    assert len(batches) < len(view)
    assert weight == count == view.supervised.sum() == sum(len(d.tokens) - 1 for d in documents)
    assert nats / weight == pytest.approx(expected / count, abs=1e-5)
    assert (view.truncated, view.dropped) == (0, 0)


def test_each_token_of_each_document_is_predicted_once_and_in_its_order(folder: Path, tiny_llama: Path) -> None:
    view, documents = view_of(folder, tiny_llama)
    model = load_model(tiny_llama, attention=attention.register())
    predicted: dict[int, list[int]] = {n: [] for n in range(len(view))}
    for packed in forward.packs_for(model, [view[n] for n in range(len(view))]):
        for row, target in zip(packed.rows.tolist(), packed.targets.tolist(), strict=True):
            predicted[row].append(target)
    for n, document in enumerate(documents):
        pieces = np.flatnonzero(view.rows == n).tolist()
        assert [t for piece in pieces for t in predicted[piece]] == document.tokens[1:].tolist()
    assert max(len(np.flatnonzero(view.rows == n)) for n in range(len(documents))) > 2


def test_a_document_that_fits_is_one_row_with_all_its_context(folder: Path, tiny_llama: Path) -> None:
    view, documents = view_of(folder, tiny_llama, 1000)
    assert len(view) == len(documents)
    for n, document in enumerate(documents):
        assert view[n].tokens.tolist() == document.tokens.tolist()
        assert view[n].weights.tolist() == [0.0] + [1.0] * (len(document.tokens) - 1)


def test_the_loop_learns_from_every_token_once_an_epoch(folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """The first step's loss is the documents' own, and the epochs' tokens add up whatever the size of a step."""
    from tunery.methods import get

    view, documents = view_of(folder, tiny_llama)
    supervised = sum(len(d.tokens) - 1 for d in documents)
    lora = get("lora")
    options = lora.Options.model_validate({"rank": 4})
    for size in ({"rows_per_step": len(view)}, {"rows_per_step": 5}, {"tokens_per_step": 100}):
        model: Any = load_model(tiny_llama, attention=attention.register())
        model = lora.attach(model, options, seed=0)
        run = Run.create(tmp_path / next(iter(size)) / str(next(iter(size.values()))), from_mapping({"model": "m", "data": {"train": "n"}}))
        learner = learners.get(tasks.get("text"))
        state = train(run, model, lora, options, learner, view, Settings(learning_rate=1e-3, epochs=2, **size), Quiet(), base="m")  # type: ignore[arg-type]
        assert state.supervised_tokens == 2 * supervised
        assert sum(line["supervised_tokens"] for line in run.metrics()) == 2 * supervised
        if size == {"rows_per_step": len(view)}:
            nats, count = one_by_one(load_model(tiny_llama), documents, LONGEST)
            assert state.first_loss == pytest.approx(nats / count, abs=1e-5)


def test_gradients_are_those_of_the_documents_one_by_one(folder: Path, tiny_llama: Path) -> None:
    view, documents = view_of(folder, tiny_llama, 1000)
    model: Any = load_model(tiny_llama, attention=attention.register()).requires_grad_(True)
    accumulate(model, learners.get(tasks.get("text")), [view[n] for n in range(len(view))], float(view.supervised.sum()))
    ours = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation("eager")
    for document in documents:
        ids = torch.from_numpy(document.tokens.astype(np.int64))[None]
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        (loss / view.supervised.sum()).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
