"""What a run began with: its data taken along, the hashes of data and model, and the check that they are still the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunery.errors import DataError, InputError, MissingModelError
from tunery.models.source import fingerprint, local_folder
from tunery.progress import Progress
from tunery.recipe import Data, Recipe, WeightedSource
from tunery.resolve import Resolved
from tunery.run import Run, sha256_of

COPY_LIMIT = 100_000_000
"""Bytes of data that a run takes along, so that it can be moved to another machine."""

FILE = "inputs.json"


def begin(target: Path, resolved: Resolved, base: Path, command: str) -> Run:
    """A new run directory with its data, its hashes, and last its recipe; nothing of it stays when that fails."""
    run = Run.create(target)
    try:
        data = _take_along(run, resolved.recipe.data, base)
        model = {"name": resolved.recipe.model, "sha256": fingerprint(resolved.folder)}
        hashes = {name: sha256_of(run.path / name) for name in _files(data) if (run.path / name).is_file()}
        run.write_json(FILE, {"model": model, "data": hashes, "reasons": dict(resolved.reasons), "command": command})
        run.write_recipe(resolved.recipe.model_copy(update={"data": data}))
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return run


def check(run: Run, progress: Progress) -> None:
    """Raise InputError, naming the file and its hash, when the model or the data of a run is missing or not what it began with."""
    recipe, known = run.recipe(), run.read_json(FILE) or {}
    for name, sha256 in known.get("data", {}).items():
        file = run.path / name
        if not file.is_file():
            raise DataError(str(file), None, f"this file of the run is missing; put it back, its SHA-256 is {sha256}")
        if sha256_of(file) != sha256:
            raise DataError(str(file), None, f"this is not the file that the run began with, whose SHA-256 is {sha256}; put that back")
    hashes = known.get("model", {}).get("sha256", {})
    shown = ", ".join(f"{name} {value}" for name, value in hashes.items() if name.endswith(".safetensors"))
    try:
        folder = local_folder(recipe.model, progress.say)
    except MissingModelError as e:
        raise MissingModelError(f"{e} (the weights of this run: SHA-256 of {shown})") from None
    if hashes and hashes != fingerprint(folder):
        raise InputError(
            f"{run.path}: the model {recipe.model} is not the one that this run began with (SHA-256 of {shown}); bring that back"
        )


@contextmanager
def alone(run: Run) -> Iterator[None]:
    """Hold a run for this process, and clear what a killed one left half-written. Raises InputError when another one works on it."""
    from filelock import FileLock, Timeout

    lock = FileLock(run.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{run.path}: another process is working on this run; wait for it, or stop it first") from None
    try:
        for half in (*run.path.glob(".*.*"), *run.checkpoints.glob(".*.*")):
            if half.is_dir():  # what a killed process was writing; we hold the run, so nobody writes there now
                shutil.rmtree(half, ignore_errors=True)
        yield
    finally:
        lock.release()


def portable(run: Run, source: str) -> str:
    """A data file's path as the run's files name it: relative to the run where it lies inside."""
    path, root = Path(source).resolve(), run.path.resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else source


def _files(data: Data) -> list[str]:
    train = [data.train] if isinstance(data.train, str) else [s.path for s in data.train]
    return list(dict.fromkeys([*train, *(x for x in (data.valid, data.test) if isinstance(x, str))]))


def _take_along(run: Run, data: Data, base: Path) -> Data:
    """The data part of the run's own recipe: copies inside the run where all is below `COPY_LIMIT`, else absolute paths."""
    files = [name for name in _files(data) if (base / name).is_file()]
    small = sum((base / name).stat().st_size for name in files) < COPY_LIMIT
    new: dict[str, str] = {}
    for name in files:
        source = (base / name).resolve()
        new[name] = str(source)
        if small:
            copy = next(p for n in range(1, len(files) + 2) if not (p := _numbered(run.data / source.name, n)).exists())
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, copy)
            new[name] = str(copy.relative_to(run.path))
    return _renamed(data, new)


def _numbered(path: Path, n: int) -> Path:
    return path if n == 1 else path.with_name(f"{path.stem}-{n}{path.suffix}")


def _renamed(data: Data, new: Mapping[str, str]) -> Data:
    train: Any = data.train
    if isinstance(train, str):
        train = new.get(train, train)
    else:
        train = tuple(WeightedSource(path=new.get(s.path, s.path), weight=s.weight) for s in train)
    others = {k: new.get(v, v) if isinstance(v, str) else v for k, v in (("valid", data.valid), ("test", data.test))}
    return data.model_copy(update={"train": train, **others})


def absolute(recipe: Recipe, base: Path) -> Recipe:
    """The recipe with local paths (the model's, `train.init_from`, `sharding.config`) made absolute, since a run is resumed from anywhere.

    Like data, they are relative to the recipe's folder; one that is only found from where the command runs is taken from there.
    """

    def found(name: str) -> str:
        for root in (base, Path.cwd()):
            if (path := (root / Path(name).expanduser())).exists():
                return str(path.resolve())
        return name

    from tunery.models.catalogue import CATALOGUE

    model = recipe.model if recipe.model.lower() in CATALOGUE else found(recipe.model)
    start = recipe.train.init_from
    train = recipe.train.model_copy(update={"init_from": found(start) if start else None})
    options = {k: found(v) if k == "config" and isinstance(v, str) else v for k, v in recipe.sharding.options.items()}
    return recipe.model_copy(update={"model": model, "train": train, "sharding": recipe.sharding.model_copy(update={"options": options})})
