"""Every method goes on after kills as if nothing had happened, bit for bit; those of our own learn with their default settings."""

import multiprocessing
import random
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import random_rows
from train_tiny import train_tiny

from tunery import methods
from tunery.models.load import load_model
from tunery.run import Run
from tunery.tasks import get
from tunery.train import attention, learners
from tunery.train.loop import accumulate

CHOICES: dict[str, dict[str, Any]] = {
    "pissa": {"name": "lora", "rank": 4, "start": "pissa", "loraplus_ratio": 4},
    "tokens": {"name": "lora", "rank": 4, "train_tokens": ["yes", "no", " river"]},
    "dora": {"name": "dora", "rank": 4, "dropout": 0.3},
    "qlora": {"name": "qlora", "rank": 4},
    "quantised dora": {"name": "qlora", "rank": 4, "dora": True, "start": "loftq"},
    "full": {"name": "full"},
}
OF_PEFT: dict[str, dict[str, Any]] = {name: {"name": name} for name in sorted({*methods.names()} - {c["name"] for c in CHOICES.values()})}
"""What these learn with their default settings is in test_peft_methods.py."""


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start with the libraries imported, so that a kill costs no seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "peft", "bitsandbytes", "train_tiny", "rows", "tunery.train.loop"])
    return context


def outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in Run(folder).metrics()]
    return lines, {f.name: f.read_bytes() for f in Run(folder).learned.iterdir()}


@pytest.mark.parametrize("choice", [*CHOICES, *OF_PEFT])
def test_kills_at_random_points_change_nothing(choice: str, processes: ForkServerContext, tiny_llama: Path, tmp_path: Path) -> None:
    method = {**CHOICES, **OF_PEFT}[choice]
    if method["name"] == "qlora":
        pytest.importorskip("bitsandbytes")

    def start(folder: Path) -> Any:
        settings = {"method": method, "epochs": 2, "checkpoint_every": 2}
        process = processes.Process(target=train_tiny, args=(tiny_llama, folder), kwargs=settings)
        process.start()
        return process

    whole, killed, rng = start(tmp_path / "whole"), tmp_path / "killed", random.Random(1)
    for wanted in (2, 7):
        process = start(killed)
        while process.is_alive() and len(Run(killed).metrics()) < wanted:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.02)
        process.kill()
        process.join()
    last = start(killed)
    for process in (whole, last):
        process.join(120)
        assert process.exitcode == 0
    assert outcome(killed) == outcome(tmp_path / "whole")
    assert len(outcome(killed)[0]) == 10


def learn(folder: Path, chosen: dict[str, Any], steps: int) -> tuple[float, float]:
    """The loss on held-out rows before and after training at the method's own rate with its own settings."""
    method = methods.get(chosen["name"])
    options = method.Options.model_validate({k: v for k, v in chosen.items() if k not in ("name", "rank", "dropout", "train_tokens")})
    model = method.attach(load_model(folder, attention=attention.register()), options, 0)
    learner = learners.get(get("chat"))
    valid = random_rows(12, seed=99, vocabulary=60)

    def held_out() -> float:
        with torch.no_grad():
            losses = [learner.loss(model.eval(), batch) for batch in learner.batches(model, valid)]
        return sum(nats.item() for nats, _ in losses) / sum(weight.item() for _, weight in losses)

    before = held_out()
    rate = method.LEARNING_RATE[0]
    own: Any = getattr(method, "parameter_groups", None)
    groups: Any = own(model, options, rate, 0.0) if own else list(methods.trainable(model).values())
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)
    for n in range(steps):
        rows = random_rows(8, seed=n, vocabulary=60)
        accumulate(model.train(), learner, rows, float(rows.supervised.sum()))
        optimizer.step()
        optimizer.zero_grad()
    return before, held_out()


@pytest.mark.parametrize("choice", CHOICES)
def test_the_loss_on_held_out_rows_falls_with_the_default_settings(choice: str, tiny_llama: Path) -> None:
    if CHOICES[choice]["name"] == "qlora":
        pytest.importorskip("bitsandbytes")
    before, after = learn(tiny_llama, CHOICES[choice], 30)
    assert after < before - 0.01
