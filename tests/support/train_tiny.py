"""A small training run in a process of its own, so that tests can kill it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def train_tiny(model_folder: Path, run_folder: Path, method: Any = None, **changes: Any) -> None:
    """Train a tiny model in `run_folder`, going on from its newest checkpoint: 4 rows a step, 5 steps an epoch.

    method: as in a recipe, `{name: dora, rank: 4}`; None: LoRA with dropout.
    """
    import torch
    from rows import random_rows

    from tunery import methods, tasks
    from tunery.models.load import load_model
    from tunery.progress import Quiet
    from tunery.recipe import from_mapping
    from tunery.run import Run
    from tunery.train import attention, learners
    from tunery.train.loop import Settings, train

    torch.set_num_threads(1)
    method = dict(method or {"name": "lora", "rank": 4, "dropout": 0.3})
    chosen = methods.get(method.pop("name"))
    options = chosen.Options.model_validate(method)
    settings = {
        "learning_rate": 1e-2,
        "epochs": 4,
        "rows_per_step": 4,
        "checkpoint_every": 3,
        "seed": 3,
        **changes,
    }
    if not (run_folder / "recipe.yaml").is_file():
        Run.create(run_folder, from_mapping({"model": str(model_folder), "data": {"train": "none.jsonl"}}))
    run = Run.open(run_folder)
    model = load_model(model_folder, attention=attention.register())
    model = chosen.attach(model, options, seed=3)
    rows, valid = random_rows(20), random_rows(4, seed=9)
    train(run, model, chosen, options, learners.get(tasks.get("chat"), None, False), rows, Settings(**settings), Quiet(), valid, "tiny")
    chosen.save(model, options, run.adapter if chosen.SAVES == "adapter" else run.weights, "tiny")
