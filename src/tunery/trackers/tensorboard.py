"""TensorBoard: event files in the run directory, shown by `tensorboard --logdir RUNS`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tunery.errors import MissingExtraError
from tunery.recipe import Options as _Options
from tunery.recipe import Recipe
from tunery.run import Run
from tunery.trackers.content import LEFT_OUT, numbers, results

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SUMMARY = "event files for TensorBoard, in the run's folder tensorboard/"
FOLDER = "tensorboard"


class Options(_Options):
    """`folder`: where the event files go; relative to the run directory."""

    folder: str = FOLDER


def require(options: Options) -> None:
    """Raise MissingExtraError unless tensorboard is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtraError("track: tensorboard is not installed; install it with: pip install 'tunery[track]'")


class TensorBoard:
    """A run as event files. The id is the folder. Names of scalars are those of metrics.jsonl; results are at the last step."""

    def __init__(self, folder: Path, identity: str, text: str, again: bool) -> None:
        self.id, self._folder, self._again = identity, folder, again
        self._writer: SummaryWriter | None = None
        self._last = 0
        folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is found out now
        if not again:
            self._open(None).add_text("recipe", f"```yaml\n{text}```")

    def _open(self, first: int | None) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            # purge_step tells TensorBoard to forget what an earlier process wrote of the steps that are done again.
            self._writer = SummaryWriter(str(self._folder), purge_step=first if self._again else None)
        return self._writer

    def steps(self, lines: Sequence[Mapping[str, Any]]) -> None:
        writer = self._open(lines[0]["step"])
        for line in lines:
            for name, value in numbers(line).items():
                writer.add_scalar(name, value, line["step"])
        self._last = lines[-1]["step"]
        writer.flush()

    def end(self, report: Mapping[str, Any]) -> None:
        last = self._last or (report.get("train") or {}).get("steps") or 0
        writer = self._open(last + 1)
        for name, value in results(report).items():
            writer.add_scalar(name, value, last)
        writer.close()


def begin(run: Run, recipe: Recipe, options: Options, known: str | None) -> TensorBoard:
    """See `Tracker.begin`. A run that was moved keeps its event files, since the folder's name is kept relative to it."""
    name = known or options.folder
    text = yaml.safe_dump({k: v for k, v in recipe.as_written().items() if k not in LEFT_OUT}, sort_keys=False, allow_unicode=True)
    return TensorBoard(run.path / name, name, text, again=known is not None)
