"""The whole job: recipe → data → before → train → after → export → report.

The one place that knows the order. Every stage leaves its result in the run directory and is skipped when that is already there, so
`resume` is the same function called again.
"""

from __future__ import annotations

import platform
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import __version__, inputs
from tunery.data.prepare import Prepared, prepare
from tunery.errors import Interrupted
from tunery.evaluate import compare, forgetting, predictions
from tunery.export.of_run import export_run
from tunery.machine import cpu_name
from tunery.models.cache import cache_folder
from tunery.models.load import count_parameters, load_tokenizer
from tunery.progress import Progress, Quiet
from tunery.recipe import Recipe, from_mapping, read
from tunery.resolve import Resolved, learned_in, resolve, with_labels
from tunery.run import Run, default_path, new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunery.train.checkpoint import State


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
    resolved = with_labels(resolve(inputs.absolute(written, base), progress, source), base)
    target = Path(run) if run is not None else default_path(source if source != "recipe" else None)
    tokenizer = load_tokenizer(resolved.folder)
    _prepare(
        resolved, resolved.renderer(tokenizer), base, progress
    )  # what is wrong is said of the user's own files, before anything is written
    begun = inputs.begin(target, resolved, base, command or f"tunery.finetune({source!r})")
    progress.say(f"run directory: {begun.path}")
    return _work(begun, _of_run(begun, resolved), tokenizer, progress)


def resume(path: str | Path, progress: Progress | None = None) -> Result:
    """Go on with a run that was stopped: the result is the same as if it had not been. A finished run is only reported again."""
    progress = progress or Quiet()
    run = Run.open(path)
    inputs.check(run, progress)
    resolved = resolve(run.recipe(), progress, str(run.recipe_file))
    return _work(run, _of_run(run, resolved), load_tokenizer(resolved.folder), progress)


def _of_run(run: Run, resolved: Resolved) -> Resolved:
    """With the data that the run took along, and the reasons that its settings had when it began."""
    known = (run.read_json(inputs.FILE) or {}).get("reasons") or {}
    return replace(resolved, recipe=run.recipe(), reasons={**resolved.reasons, **known})


def _prepare(resolved: Resolved, renderer: Any, base: Path, progress: Progress) -> Prepared:
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


def _work(run: Run, resolved: Resolved, tokenizer: Any, progress: Progress) -> Result:
    with inputs.alone(run), _stoppable():
        stages: dict[str, float] = run.read_json("stages.json") or {}
        prepared = _prepare(resolved, resolved.renderer(tokenizer), run.path, progress)

        def tell(status: str, **more: str) -> dict[str, Any]:
            from tunery.report import page

            report = {**_report(run, resolved, prepared), "status": status, **more}
            run.write_json("report.json", report)
            page.write_page(run)
            return report

        try:
            _stages(run, resolved, prepared, tokenizer, _Logged(progress, run), stages)
            return Result(run, tell("succeeded"))
        except Interrupted as e:
            tell("cancelled", error=str(e))
            raise
        except KeyboardInterrupt:
            stopped = Interrupted(f"stopped; go on with `tunery resume {run.path}`")
            tell("cancelled", error=str(stopped))
            raise stopped from None
        except Exception as e:
            run.log(f"failed: {e.__class__.__name__}: {e}")
            tell("failed", error=str(e) or e.__class__.__name__)
            raise


def _stages(run: Run, resolved: Resolved, prepared: Prepared, tokenizer: Any, progress: Progress, stages: dict[str, float]) -> None:
    import torch

    from tunery.infer.open_engine import load_base
    from tunery.infer.torch_engine import TorchEngine
    from tunery.train import checkpoint
    from tunery.train.precision import peaks

    recipe, method = resolved.recipe, resolved.method
    torch.manual_seed(recipe.train.seed)
    renderer = resolved.renderer(tokenizer)
    test = _limited(prepared.test, recipe.evaluate.limit, recipe.train.seed)
    for key, reason in resolved.reasons.items():
        run.log(f"{key}: {reason}")
    trained = (run.path / "training.json").is_file()

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            stages[name] = round(stages.get(name, 0.0) + time.monotonic() - started, 2)
            run.write_json("stages.json", stages)

    def evaluate(model: PreTrainedModel, when: str) -> None:
        if not test or run.predictions_file(when).is_file():
            return
        with timed(f"evaluate {when}"):
            engine = TorchEngine(model, tokenizer, renderer.stop_ids, resolved.context)
            asked = recipe.evaluate.max_new_tokens
            lines = predictions.predict(model, engine, renderer, resolved.task, test, _max_length(resolved), asked, progress, when)
            if recipe.evaluate.forgetting_tokens:
                run.write_json(f"forgetting-{when}.json", forgetting.probe(model, tokenizer, probe_text, resolved.context, progress, when))
            for line in lines:
                line["source"] = inputs.portable(run, line["source"])
            predictions.write(run.predictions_file(when), lines)

    if test and recipe.evaluate.forgetting_tokens and not run.predictions_file("after").is_file():
        probe_text = forgetting.choose(tokenizer, recipe.evaluate.forgetting_tokens, prepared.training_texts())
        if probe_text.short:
            progress.say(
                f"forgetting: there is less text than asked for in {', '.join(probe_text.short)}; the rest was in the training rows"
            )
    if not trained or (test and not run.predictions_file("after").is_file()):
        with timed("load"):
            model = load_base(recipe, resolved.folder, resolved.dtype, resolved.device)
        total = count_parameters(model)
        evaluate(model, "before")
        model = method.attach(model, resolved.options, recipe.train.seed)
        if trained:
            method.load(model, run.learned)
        elif recipe.train.init_from and checkpoint.newest(run.checkpoints) is None:
            method.load(model, learned_in(recipe.train.init_from))
        if not trained:
            with timed("train"):
                state = train(run, resolved, prepared, model, progress)
            with new_folder(run.adapter if method.SAVES == "adapter" else run.weights) as folder:
                method.save(model, resolved.options, folder, recipe.model)
                tokenizer.save_pretrained(str(folder))
            learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
            counts = {"trainable_parameters": learned, "total_parameters": total, **peaks(resolved.device)}
            run.write_json("training.json", {**asdict(state), **counts})
            progress.say(f"trained {state.step} steps in {state.seconds:.0f} s, loss {state.first_loss:.3f} → {state.final_loss:.3f}")
        if method.TRAINS_BASE:
            model = model.to(getattr(torch, resolved.dtype))  # as it will be used
        evaluate(model.eval(), "after")
        del model
    if test and not (run.path / "evaluation.json").is_file():
        with timed("compare"):
            run.write_json("evaluation.json", _evaluation(run, recipe))
    with timed("export"):
        export_run(run, recipe, resolved.exports, renderer, test, run.read_json("evaluation.json"), progress)


def train(run: Run, resolved: Resolved, prepared: Prepared, model: PreTrainedModel, progress: Progress) -> State:
    """The training itself, of a model that the method has prepared."""
    from tunery.train import learners, loop

    learner = learners.get(resolved.task, resolved.task_options, resolved.share_prefixes)
    return loop.train(
        run,
        model,
        resolved.method,
        resolved.options,
        learner,
        prepared.train,
        resolved.settings,
        progress,
        prepared.valid,
        resolved.recipe.model,
    )


def _max_length(resolved: Resolved) -> int:
    assert resolved.recipe.train.max_length is not None  # resolving set it
    return resolved.recipe.train.max_length


def _limited(rows: list[Any], limit: int | None, seed: int) -> list[Any]:
    """At most `limit` rows, drawn by seed and left in their order: a file that is sorted by label must not give one label."""
    if limit is None or len(rows) <= limit:
        return rows
    import numpy as np

    return [rows[i] for i in sorted(np.random.default_rng(seed).choice(len(rows), limit, replace=False).tolist())]


def _evaluation(run: Run, recipe: Recipe) -> dict[str, Any]:
    before, after = (predictions.read(run.predictions_file(when)) for when in ("before", "after"))
    evaluation = compare.compare(compare.chosen_metrics(recipe.evaluate.metrics, before), before, after)
    old, new = run.read_json("forgetting-before.json"), run.read_json("forgetting-after.json")
    if old and new:
        evaluation["forgetting"] = forgetting.compare(old, new)
    return evaluation


def _report(run: Run, resolved: Resolved, prepared: Prepared) -> dict[str, Any]:
    """report.json from what the run holds now: a part that is not there yet is null or empty."""
    known = run.read_json(inputs.FILE) or {}
    return {
        "schema": 1,
        "model": known.get("model", {}).get("name", resolved.recipe.model),
        "method": resolved.recipe.method.name,
        "task": resolved.recipe.task.name,
        "status": "failed",
        "data": prepared.stats.report(),
        "train": _train_part(run.read_json("training.json")),
        "plan": run.read_json("plan.json"),
        "evaluation": run.read_json("evaluation.json"),
        "exports": run.read_json("exports.json") or {},
        "environment": environment(resolved),
        "reasons": dict(resolved.reasons),
        "stages": run.read_json("stages.json") or {},
        "command": known.get("command"),
        "inputs": {"model": known.get("model"), "data": known.get("data")},
    }


def _train_part(training: dict[str, Any] | None) -> dict[str, Any]:
    if training is None:
        return {}
    seconds = max(training["seconds"], 1e-9)
    rates = {"rows_per_second": training["rows"] / seconds, "tokens_per_second": training["tokens"] / seconds}
    renamed = {"steps": training["step"], **rates}
    left_out = ("step", "rows", "validations_since_best")
    return {**{k: v for k, v in training.items() if k not in left_out and v is not None}, **renamed}


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


@contextmanager
def _stoppable() -> Iterator[None]:
    """A polite kill ends the job as Ctrl-C does: with a report, and resumable."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        old = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever runs the thread stops it
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


class _Logged:
    """A progress that also keeps what was said in the run's log."""

    def __init__(self, progress: Progress, run: Run) -> None:
        self.progress, self.run = progress, run

    def show(self, what: str, done: float, total: float | None = None, detail: str = "") -> None:
        self.progress.show(what, done, total, detail)

    def say(self, message: str) -> None:
        self.run.log(message)
        self.progress.say(message)
