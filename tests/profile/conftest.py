"""A short training on a tiny model with a watcher."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tunery.run import Run

Watched = Callable[..., tuple[Run, dict[str, Any]]]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """`watched(model, method={"name": "lora"}, **settings)` trains six steps: (the run, its profile). profile=False: nobody looks on."""

    def train(
        model_folder: Path, method: dict[str, Any] | None = None, profile: bool = True, implementation: str | None = None, **settings: Any
    ) -> tuple[Run, dict[str, Any]]:
        import torch
        from rows import random_rows

        from tunery import methods, tasks
        from tunery.models.load import load_model
        from tunery.profile import record
        from tunery.profile._watch import watching
        from tunery.progress import Quiet
        from tunery.recipe import from_mapping
        from tunery.sharding._engine import Engine
        from tunery.train import attention, learners, loop

        named = dict(method or {"name": "lora", "rank": 4})
        chosen = methods.get(named.pop("name"))
        options = chosen.Options.model_validate(named)
        number = len(list(tmp_path.glob("run-*")))
        run = Run.create(tmp_path / f"run-{number}", from_mapping({"model": str(model_folder), "data": {"train": "none.jsonl"}}))
        if profile:
            record.add(run)
        torch.manual_seed(0)
        model = load_model(model_folder, attention=implementation or attention.register())
        model = chosen.attach(model, options, 3)
        engine, learner = Engine(), learners.get(tasks.get("chat"), None, True)
        watcher = watching(run, model, engine, learner, chosen.TRAINS_BASE, "float32")
        assert (watcher is not None) == profile
        given = loop.Settings(**{"learning_rate": 1e-2, "rows_per_step": 8, "max_steps": 6, "seed": 3, **settings})
        with watcher or nullcontext():
            loop.train(run, model, chosen, options, learner, random_rows(24), given, Quiet(), None, "tiny", engine, watcher)
        return run, record.read(run)

    return train
