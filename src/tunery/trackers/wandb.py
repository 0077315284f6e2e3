"""Weights & Biases: a run in a project there, or, with WANDB_MODE=offline, files in the run directory that `wandb sync` sends later."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tunery.errors import InputError, MissingExtraError
from tunery.recipe import Options as _Options
from tunery.recipe import Recipe
from tunery.run import Run
from tunery.trackers.content import numbers, results, settings

if TYPE_CHECKING:
    import wandb

SUMMARY = "a run in Weights & Biases, or its files for later (WANDB_MODE=offline)"


class Options(_Options):
    """`project` and `entity` as W&B names them; `mode`: else WANDB_MODE, else online."""

    project: str = "tunery"
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None


def require(options: Options) -> None:
    """Raise MissingExtraError unless wandb is installed, InputError when it would ask for a key."""
    if importlib.util.find_spec("wandb") is None:
        raise MissingExtraError("track: wandb is not installed; install it with: pip install 'tunery[track]'")
    if (options.mode or os.environ.get("WANDB_MODE", "online")) != "online" or os.environ.get("WANDB_API_KEY"):
        return
    import wandb

    try:
        wandb.Api()  # finds the key that `wandb login` kept
    except wandb.errors.UsageError:
        raise InputError(
            "track: wandb has no key; set WANDB_API_KEY, run `wandb login`, or set WANDB_MODE=offline to keep its files here"
        ) from None


class WandB:
    """A run at W&B. W&B itself leaves out a step that it has already."""

    def __init__(self, at: wandb.Run) -> None:
        self._at, self.id = at, str(at.id)

    def steps(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            self._at.log(numbers(line), step=line["step"])

    def end(self, report: Mapping[str, Any]) -> None:
        self._at.summary.update({**results(report), "status": report.get("status")})
        self._at.finish(exit_code=0 if report.get("status") == "succeeded" else 1)


def begin(run: Run, recipe: Recipe, options: Options, known: str | None) -> WandB:
    """See `Tracker.begin`."""
    import wandb

    at = wandb.init(
        project=options.project,
        entity=options.entity,
        mode=options.mode,
        dir=str(run.path.resolve()),
        name=run.path.resolve().name,
        id=known or uuid.uuid4().hex[:8],
        resume="allow",
        reinit="create_new",  # another run of this process keeps its own
        config=settings(recipe),
        settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, save_code=False),
    )
    return WandB(at)
