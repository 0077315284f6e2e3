"""The Run directory: the one place through which the stages hand over.

    recipe.yaml  plan.json  metrics.jsonl  checkpoints/step-N/  adapter/  merged/  onnx/
    predictions-{before,after,reference}.jsonl  probes.json  report.json  report.html  log.txt  data/

Every file is written beside its place and then renamed, so a reader never sees half of one. A run can be copied to
another machine: the data itself lies in `data/` below 100 MB, and the hashes of model and data are in `inputs.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tunery.errors import InputError
from tunery.recipe import Recipe, from_mapping


class Run:
    """A run directory that exists. Paths are properties; `read_json` and `write_json` serve every small file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path, recipe: Recipe | None = None) -> Run:
        """A new run directory; an existing one that holds anything is refused, never overwritten."""
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(
                f"{path}: this run directory is already in use; choose another with --run, or go on with `tunery resume {path}`"
            )
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        if recipe is not None:
            run.write_recipe(recipe)
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run directory."""
        run = cls(path)
        if not run.recipe_file.is_file():
            raise InputError(f"{path}: this is not a run directory (it has no recipe.yaml); name one that `tunery train` made")
        return run

    recipe_file = property(lambda self: self.path / "recipe.yaml")
    metrics_file = property(lambda self: self.path / "metrics.jsonl")
    checkpoints = property(lambda self: self.path / "checkpoints")
    adapter = property(lambda self: self.path / "adapter")
    weights = property(lambda self: self.path / "weights")
    learned = property(
        lambda self: self.weights if self.weights.is_dir() else self.adapter,
        doc="The folder of what was learned: an adapter, or all weights where the method trains the base itself.",
    )
    report_file = property(lambda self: self.path / "report.json")
    page_file = property(lambda self: self.path / "report.html")
    log_file = property(lambda self: self.path / "log.txt")
    data = property(lambda self: self.path / "data")

    def predictions_file(self, when: str) -> Path:
        """Where the answers to the test rows lie; `when` is `before` or `after`.

        `reference`, of preferences alone: those of the model that training began with, where it is not the base as it is.
        """
        return self.path / f"predictions-{when}.jsonl"

    def write_recipe(self, recipe: Recipe) -> None:
        write_text(self.recipe_file, yaml.safe_dump(recipe.as_written(), sort_keys=False, allow_unicode=True))

    def recipe(self) -> Recipe:
        return from_mapping(yaml.safe_load(self.recipe_file.read_text(encoding="utf-8")), source=str(self.recipe_file))

    def read_json(self, name: str) -> Any:
        """The content of a JSON file in the run, or None when it is not there."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write_json(self, name: str, content: Any) -> None:
        write_text(self.path / name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that a kill cut short is left out."""
        lines = self.metrics_file.read_text(encoding="utf-8").split("\n")[:-1] if self.metrics_file.is_file() else []
        return [json.loads(line) for line in lines]

    def log(self, message: str) -> None:
        """One dated line into log.txt."""
        with self.log_file.open("a", encoding="utf-8") as f:
            f.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {message}\n")


def default_path(recipe_path: str | Path | None, root: str | Path = "runs") -> Path:
    """`runs/<recipe's folder or name>-<time>`, free at this moment."""
    name = "run"
    if recipe_path is not None:
        recipe_path = Path(recipe_path).resolve()
        name = recipe_path.parent.name if recipe_path.stem in ("recipe", "tunery") else recipe_path.stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
    base = Path(root) / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return next(p for n in range(1, 10_000) if not (p := base if n == 1 else base.with_name(f"{base.name}-{n}")).exists())


def write_text(file: Path, text: str) -> None:
    """Write a whole text file at once: readers see the old content or the new, never a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a run is for its whole team
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that appears at `target` whole, when the block ends well, and not at all when it does not.

    An existing `target` is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    os.chmod(temporary, 0o755)
    try:
        yield temporary
        old = None
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old.")) / "x"
            os.replace(target, old)
        os.replace(temporary, target)
        if old is not None:
            shutil.rmtree(old.parent, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sha256_of(file: str | Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
