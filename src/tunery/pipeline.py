"""The whole job: recipe → data → before → train → after → export → report.

The one place that knows the order. Every stage leaves its result in the run directory and is skipped when that is already there, so
`resume` is the same function called again.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import __version__
from tunery.data.prepare import Prepared, prepare
from tunery.data.render import Renderer
from tunery.errors import InputError, Interrupted
from tunery.evaluate import compare, forgetting, predictions
from tunery.export.of_run import export_run
from tunery.machine import cpu_name, peak_memory
from tunery.models.cache import cache_folder
from tunery.models.load import count_parameters, load_model, load_tokenizer
from tunery.models.source import fingerprint
from tunery.progress import Progress, Quiet
from tunery.recipe import Data, Recipe, WeightedSource, from_mapping, read
from tunery.resolve import Resolved, resolve
from tunery.run import Run, default_path, new_folder, sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COPY_LIMIT = 100_000_000
"""Bytes of data that a run takes along, so that it can be moved to another machine."""


@dataclass(frozen=True)
class Result:
    """What a job left: the run directory, and its report as a mapping."""

    run: Run
    report: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.run.path


def finetune(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    run: str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: Progress | None = None,
    command: str | None = None,
) -> Result:
    """Do the whole job that a recipe (an object, a mapping, or a YAML file) describes, in the run directory `run`.

    Nothing is written when the recipe, the model or the data is wrong. Raises InputError, RunError, ProofError, Interrupted.
    """
    progress = progress or Quiet()
    base, source = Path.cwd(), "recipe"
    if isinstance(recipe, str | Path):
        base, source = Path(recipe).resolve().parent, str(recipe)
        written: Recipe = read(recipe, overrides)
    elif isinstance(recipe, Recipe):
        written = from_mapping(recipe.as_written(), overrides)
    else:
        written = from_mapping(recipe, overrides)
    resolved = resolve(written, progress, source)
    target = Path(run) if run is not None else default_path(source if source != "recipe" else None)
    tokenizer = load_tokenizer(resolved.folder)
    prepared = _prepare(resolved, Renderer(tokenizer), base, progress)
    created = Run.create(target, resolved.recipe)
    data = _take_data_along(created, resolved.recipe.data, base)
    created.write_recipe(resolved.recipe.model_copy(update={"data": data}))
    created.write_json(
        "inputs.json",
        {
            "model": {"name": written.model, "sha256": fingerprint(resolved.folder)},
            "data": {name: sha256_of(base / name) for name in _files(written.data) if (base / name).is_file()},
            "reasons": dict(resolved.reasons),
            "command": command or f"tunery.finetune({source!r})",
        },
    )
    return _work(created, resolved, prepared, tokenizer, progress)


def resume(path: str | Path, progress: Progress | None = None) -> Result:
    """Go on with a run that was stopped: the result is the same as if it had not been. A finished run is only reported again."""
    progress = progress or Quiet()
    run = Run.open(path)
    resolved = resolve(run.recipe(), progress, str(run.recipe_file))
    inputs = run.read_json("inputs.json") or {}
    known = inputs.get("model", {}).get("sha256")
    if known and known != fingerprint(resolved.folder):
        raise InputError(f"{path}: the model {resolved.recipe.model} is not the one that this run began with; its files have other hashes")
    tokenizer = load_tokenizer(resolved.folder)
    prepared = _prepare(resolved, Renderer(tokenizer), run.path, progress)
    return _work(run, resolved, prepared, tokenizer, progress)


def _prepare(resolved: Resolved, renderer: Renderer, base: Path, progress: Progress) -> Prepared:
    return prepare(
        resolved.recipe.data,
        renderer,
        max_length=_max_length(resolved),
        context=resolved.context,
        seed=resolved.recipe.train.seed,
        base=base,
        cache=cache_folder(),
        kinds=resolved.task.ROWS,
        progress=lambda done, total, what: progress.show(what, done, total),
    )


def _work(run: Run, resolved: Resolved, prepared: Prepared, tokenizer: Any, progress: Progress) -> Result:
    stages: dict[str, float] = (run.read_json("stages.json") or {}) if run.report_file.exists() or run.metrics_file.exists() else {}
    report: dict[str, Any] = _skeleton(run, resolved, prepared)
    told = _Logged(progress, run)
    try:
        _stages(run, resolved, prepared, tokenizer, told, stages, report)
        report["status"] = "succeeded"
    except (Interrupted, KeyboardInterrupt) as e:
        report["status"], report["error"] = "cancelled", str(e) or "interrupted"
        raise
    except Exception as e:
        report["status"], report["error"] = "failed", str(e)
        run.log(f"failed: {e.__class__.__name__}: {e}")
        raise
    finally:
        run.write_json("stages.json", stages)
        run.write_json("report.json", report)
    from tunery.report.page import write_page

    write_page(run)
    return Result(run, report)


def _stages(
    run: Run, resolved: Resolved, prepared: Prepared, tokenizer: Any, progress: Progress, stages: dict[str, float], report: dict[str, Any]
) -> None:
    import torch

    from tunery.infer.torch_engine import TorchEngine
    from tunery.train import attention, checkpoint, loop

    recipe, method = resolved.recipe, resolved.method
    torch.manual_seed(recipe.train.seed)
    renderer = Renderer(tokenizer)
    test = _limited(prepared.test, recipe.evaluate.limit, recipe.train.seed)
    for key, reason in resolved.reasons.items():
        run.log(f"{key}: {reason}")
    trained = (run.path / "training.json").is_file()
    total = 0

    def load() -> PreTrainedModel:
        with _timed(stages, "load"):
            return load_model(resolved.folder, resolved.dtype, resolved.device, attention=attention.register())

    def evaluate(model: PreTrainedModel, when: str) -> None:
        if not test or run.predictions_file(when).is_file():
            return
        model.eval()
        with _timed(stages, f"evaluate {when}"):
            engine = TorchEngine(model, tokenizer, renderer.stop_ids)
            lines = predictions.predict(
                model, engine, renderer, resolved.task, test, _max_length(resolved), recipe.evaluate.max_new_tokens, progress, when
            )
            if probe_text is not None:
                run.write_json(f"forgetting-{when}.json", forgetting.probe(model, tokenizer, probe_text, progress, when))
            predictions.write(run.predictions_file(when), lines)

    probe_text = None
    if test and recipe.evaluate.forgetting_tokens:
        probe_text = forgetting.choose(tokenizer, recipe.evaluate.forgetting_tokens, prepared.training_texts())
    model: PreTrainedModel | None = None
    if not trained or (test and not run.predictions_file("after").is_file()):
        model = load()
        total = count_parameters(model)
        evaluate(model, "before")
        method.attach(model, resolved.options, recipe.train.seed)
        if trained:
            method.load(model, run.adapter)
        elif recipe.train.init_from and checkpoint.newest(run.checkpoints) is None:
            method.load(model, _adapter_of(recipe.train.init_from))
    if not trained:
        assert model is not None
        report["train"]["total_parameters"] = total
        with _timed(stages, "train"):
            state = loop.train(
                run,
                model,
                method,
                resolved.options,
                resolved.task,
                prepared.train,
                resolved.settings,
                progress,
                prepared.valid,
                recipe.model,
            )
        with new_folder(run.adapter) as folder:
            method.save(model, resolved.options, folder, recipe.model)
            tokenizer.save_pretrained(str(folder))
        learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
        run.write_json(
            "training.json",
            {**asdict(state), "trainable_parameters": learned, "total_parameters": total, "peak_memory_bytes": peak_memory()},
        )
        progress.say(f"trained {state.step} steps in {state.seconds:.0f} s, loss {state.first_loss:.3f} → {state.final_loss:.3f}")
    report["train"], report["plan"] = _train_part(run), run.read_json("plan.json")
    if model is not None:
        evaluate(model, "after")
        del model
    if test:
        report["evaluation"] = _evaluation_part(run, recipe)
    with _timed(stages, "export"):
        report["exports"] = export_run(run, recipe, resolved.exports, renderer, test, report["evaluation"], progress)
    report["stages"] = {k: round(v, 2) for k, v in stages.items()}


def _max_length(resolved: Resolved) -> int:
    assert resolved.recipe.train.max_length is not None  # resolving set it
    return resolved.recipe.train.max_length


def _limited(rows: list[Any], limit: int | None, seed: int) -> list[Any]:
    """At most `limit` rows, drawn by seed and left in their order: a file that is sorted by label must not give one label."""
    if limit is None or len(rows) <= limit:
        return rows
    import numpy as np

    return [rows[i] for i in sorted(np.random.default_rng(seed).choice(len(rows), limit, replace=False).tolist())]


def _adapter_of(where: str) -> Path:
    path = Path(where)
    return path / "adapter" if (path / "adapter").is_dir() else path


def _train_part(run: Run) -> dict[str, Any]:
    t = run.read_json("training.json")
    seconds = max(t["seconds"], 1e-9)
    return {
        "seconds": t["seconds"],
        "steps": t["step"],
        "rows_per_second": t["rows"] / seconds,
        "tokens_per_second": t["tokens"] / seconds,
        "peak_memory_bytes": t["peak_memory_bytes"],
        "trainable_parameters": t["trainable_parameters"],
        "total_parameters": t["total_parameters"],
        "first_loss": t["first_loss"],
        "final_loss": t["final_loss"],
        "best_step": t["best_step"],
        "best_valid_loss": t["best_valid_loss"],
    }


def _evaluation_part(run: Run, recipe: Recipe) -> dict[str, Any]:
    before, after = (predictions.read(run.predictions_file(when)) for when in ("before", "after"))
    names = compare.chosen_metrics(recipe.evaluate.metrics, before)
    evaluation = compare.compare(names, before, after)
    old, new = run.read_json("forgetting-before.json"), run.read_json("forgetting-after.json")
    if old and new:
        evaluation["forgetting"] = forgetting.compare(old, new)
    return evaluation


def _skeleton(run: Run, resolved: Resolved, prepared: Prepared) -> dict[str, Any]:
    inputs = run.read_json("inputs.json") or {}
    return {
        "schema": 1,
        "model": resolved.recipe.model,
        "method": resolved.recipe.method.name,
        "task": resolved.recipe.task,
        "status": "failed",
        "data": prepared.stats.report(),
        "train": {},
        "plan": run.read_json("plan.json"),
        "evaluation": None,
        "exports": {},
        "environment": environment(resolved),
        "reasons": dict(resolved.reasons),
        "command": inputs.get("command"),
        "inputs": {"model": inputs.get("model"), "data": inputs.get("data")},
    }


def environment(resolved: Resolved) -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    device = torch.cuda.get_device_name() if resolved.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tunery": __version__,
        "cpu": cpu_name(),
        "device": device,
        "precision": resolved.recipe.train.precision,
        "platform": platform.platform(),
        "seed": resolved.recipe.train.seed,
    }


def _files(data: Data) -> list[str]:
    train = [data.train] if isinstance(data.train, str) else [s.path for s in data.train]
    return list(dict.fromkeys([*train, *(x for x in (data.valid, data.test) if isinstance(x, str))]))


def _take_data_along(run: Run, data: Data, base: Path) -> Data:
    """The data part of the run's own recipe: copies inside the run where all is below `COPY_LIMIT`, else absolute paths."""
    files = [name for name in _files(data) if (base / name).is_file()]
    small = sum((base / name).stat().st_size for name in files) < COPY_LIMIT
    new: dict[str, str] = {}
    for name in files:
        source = (base / name).resolve()
        new[name] = str(source)
        if small:
            copy = run.data / source.name
            for n in range(2, len(files) + 2):
                if not copy.exists():
                    break
                copy = run.data / f"{source.stem}-{n}{source.suffix}"
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, copy)
            new[name] = str(copy.relative_to(run.path))
    train: Any = data.train
    if isinstance(train, str):
        train = new.get(train, train)
    else:
        train = tuple(WeightedSource(path=new.get(s.path, s.path), weight=s.weight) for s in train)
    others = {k: new.get(v, v) if isinstance(v, str) else v for k, v in (("valid", data.valid), ("test", data.test))}
    return data.model_copy(update={"train": train, **others})


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Any:
    started = time.monotonic()
    try:
        yield
    finally:
        stages[name] = stages.get(name, 0.0) + time.monotonic() - started


class _Logged:
    """A progress that also keeps what was said in the run's log."""

    def __init__(self, progress: Progress, run: Run) -> None:
        self.progress, self.run = progress, run

    def show(self, what: str, done: float, total: float | None = None, detail: str = "") -> None:
        self.progress.show(what, done, total, detail)

    def say(self, message: str) -> None:
        self.run.log(message)
        self.progress.say(message)
