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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import __version__, card, inputs, publish
from tunery.data.prepare import Prepared
from tunery.errors import Interrupted
from tunery.evaluate import baselines, by_preference, compare, forgetting, predictions
from tunery.export.of_run import export_run
from tunery.launch import outside, processes, work
from tunery.machine import cpu_name
from tunery.models.load import count_parameters, load_tokenizer
from tunery.profile import record
from tunery.profile import stages as clocks
from tunery.progress import Progress, Quiet
from tunery.recipe import Recipe, from_mapping, read
from tunery.resolve import Resolved, learned_in, resolve, with_labels
from tunery.run import Run, default_path
from tunery.trackers import observers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    profile: bool = False,
) -> Result:
    """Do the whole job that a recipe (an object, a mapping, or a YAML file) describes, in the run directory `run`.

    profile: also write where time and memory went, as `profile.html` and `profile.json`; the result is the same.
    Nothing is written when the recipe, the model or the data is wrong. Raises InputError, RunError, ProofError, Interrupted. Under a
    launcher such as torchrun every process calls this; all but the first only train, and what they get has an empty report.
    """
    if outside.follows():
        return _follow(run)
    progress = progress or Quiet()
    clock = clocks.Clock(profile, from_start=command is not None)
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
    with clock.stage("prepare"):
        tokenizer = load_tokenizer(resolved.folder)
        work.prepare_data(
            resolved, resolved.renderer(tokenizer), base, progress
        )  # what is wrong is said of the user's own files, before anything is written
    begun = inputs.begin(target, resolved, base, command or f"tunery.finetune({source!r})")
    progress.say(f"run directory: {begun.path}")
    return _work(begun, work.of_run(begun, resolved), tokenizer, progress, clock)


def resume(path: str | Path, progress: Progress | None = None) -> Result:
    """Go on with a run that was stopped: the result is the same as if it had not been. A finished run is only reported again."""
    if outside.follows():
        return _follow(path)
    progress = progress or Quiet()
    run = Run.open(path)
    inputs.check(run, progress)
    resolved = resolve(run.recipe(), progress, str(run.recipe_file))
    return _work(run, work.of_run(run, resolved), load_tokenizer(resolved.folder), progress, clocks.Clock(record.wanted(run)))


def _follow(path: str | Path | None) -> Result:
    run = outside.follow()
    return Result(run or Run(path or "."), {})


def _work(run: Run, resolved: Resolved, tokenizer: Any, progress: Progress, clock: clocks.Clock) -> Result:
    with inputs.alone(run), _stoppable():
        clock.keep(run)
        stages: dict[str, float] = run.read_json("stages.json") or {}
        with clock.stage("prepare"):
            prepared = work.prepare_data(resolved, resolved.renderer(tokenizer), run.path, progress)

        def tell(status: str, **more: str) -> dict[str, Any]:
            from tunery.report import page, profile_page

            report = {**_report(run, resolved, prepared), "status": status, **more}
            run.write_json("report.json", report)
            page.write_page(run)
            card.write(run)
            clock.note()
            profile_page.write_page(run, measure=status == "succeeded")
            return report

        watching: observers.Observers | None = None
        try:
            watching = observers.begin(run, resolved.recipe, resolved.track, _Logged(progress, run))
            _stages(run, resolved, prepared, tokenizer, _Logged(progress, run), stages, clock)
            report = tell("succeeded")
            if resolved.hub is not None:
                publish.once(run, report, resolved.hub, _Logged(progress, run))
                report = tell("succeeded")
            return Result(run, report)
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
        finally:
            if watching is not None:
                watching.end(run.read_json("report.json"))


def _stages(
    run: Run,
    resolved: Resolved,
    prepared: Prepared,
    tokenizer: Any,
    progress: Progress,
    stages: dict[str, float],
    clock: clocks.Clock,
) -> None:
    import torch

    from tunery.infer.open_engine import load_base
    from tunery.train import checkpoint

    recipe, method = resolved.recipe, resolved.method
    torch.manual_seed(recipe.train.seed)
    renderer = resolved.renderer(tokenizer)
    test = _limited(prepared.test, recipe.evaluate.limit, recipe.train.seed)
    for key, reason in resolved.reasons.items():
        run.log(f"{key}: {reason}")
    trained = (run.path / "training.json").is_file()
    # The reference of preferences is the base, unless training begins with another model: a run's, or the base as it is quantised.
    another = bool(recipe.train.init_from) or getattr(method, "QUANTISES", False)
    if trained:
        outside.release()

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            with clock.stage(name):
                yield
        finally:
            stages[name] = round(stages.get(name, 0.0) + time.monotonic() - started, 2)
            run.write_json("stages.json", stages)

    def evaluate(model: PreTrainedModel, when: str) -> None:
        if not test or run.predictions_file(when).is_file():
            return
        with timed(f"evaluate {when}"):
            length, asked = _max_length(resolved), recipe.evaluate.max_new_tokens
            lines = predictions.predict(model, renderer, resolved.task, test, length, resolved.context, asked, progress, when)
            if recipe.evaluate.forgetting_tokens and when != "reference":
                run.write_json(f"forgetting-{when}.json", forgetting.probe(model, tokenizer, probe_text, resolved.context, progress, when))
            if resolved.task.FORM == "pairs" and when == "after":
                lines = by_preference.of_run(run, lines)
            elif resolved.task.FORM == "pairs" and when == "before" and not another:
                lines = by_preference.refer(lines, lines)
            for line in lines:
                line["source"] = inputs.portable(run, line["source"])
            predictions.write(run.predictions_file(when), lines)

    def referred(model: PreTrainedModel) -> Prepared:
        if resolved.task.FORM != "pairs":
            return prepared
        if test and another and resolved.task_options.needs_reference and checkpoint.newest(run.checkpoints) is None:
            # What is measured before and after is counted from the very model that the loss counts from.
            evaluate(model.eval(), "reference")
            before = run.predictions_file("before")
            predictions.write(before, by_preference.of_run(run, predictions.read(before)))
        with timed("reference"):
            return work.with_reference(run, resolved, prepared, model, progress)

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
        if not trained and not another:
            prepared = referred(model)

        def attached(model: PreTrainedModel) -> PreTrainedModel:
            return method.attach(model, resolved.options, recipe.train.seed)

        def begun(model: PreTrainedModel) -> PreTrainedModel:
            model = attached(model)
            if recipe.train.init_from and checkpoint.newest(run.checkpoints) is None:
                method.load(model, learned_in(recipe.train.init_from))
            return model

        def learned(model: PreTrainedModel) -> PreTrainedModel:
            model = attached(model)
            method.load(model, run.learned)
            return model

        if trained:
            model = learned(model)
        else:
            alone = recipe.sharding.name == "none"
            if alone or (another and resolved.task.FORM == "pairs"):
                model = begun(model)
            if another:
                prepared = referred(model)
            with timed("train"):
                if alone:
                    work.train(run, resolved, prepared, model, tokenizer, total, progress)
                else:
                    del model  # the processes load their own
                    _train_in_processes(run, resolved, progress)
                    model = learned(load_base(recipe, resolved.folder, resolved.dtype, resolved.device))
            state = run.read_json("training.json")
            losses = f"loss {state['first_loss']:.3f} → {state['final_loss']:.3f}"
            progress.say(f"trained {state['step']} steps in {state['seconds']:.0f} s, {losses}")
        if method.TRAINS_BASE:
            model = model.to(getattr(torch, resolved.dtype))  # as it will be used
        evaluate(model.eval(), "after")
        del model
    if test and not (run.path / "evaluation.json").is_file():
        with timed("compare"):
            run.write_json("evaluation.json", _evaluation(run, resolved, prepared, renderer, test, progress))
    with timed("export"):
        export_run(run, recipe, resolved.exports, renderer, test, run.read_json("evaluation.json"), progress)


def _train_in_processes(run: Run, resolved: Resolved, progress: Progress) -> None:
    """Train in the processes that a launcher started, this one among them, or else in some of our own."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    progress.say(f"training in {resolved.processes} processes ({resolved.recipe.sharding.name})")
    if outside.leads():
        outside.lead(run, progress)
    else:
        processes.train(run, resolved.processes, progress)


def _max_length(resolved: Resolved) -> int:
    assert resolved.recipe.train.max_length is not None  # resolving set it
    return resolved.recipe.train.max_length


def _limited(rows: list[Any], limit: int | None, seed: int) -> list[Any]:
    """At most `limit` rows, drawn by seed and left in their order: a file that is sorted by label must not give one label."""
    if limit is None or len(rows) <= limit:
        return rows
    import numpy as np

    return [rows[i] for i in sorted(np.random.default_rng(seed).choice(len(rows), limit, replace=False).tolist())]


def _evaluation(run: Run, resolved: Resolved, prepared: Prepared, renderer: Any, test: list[Any], progress: Progress) -> dict[str, Any]:
    before, after = (predictions.read(run.predictions_file(when)) for when in ("before", "after"))
    task, known = resolved.task, compare.known_labels(resolved.task, resolved.task_options)
    names = compare.chosen_metrics(resolved.recipe.evaluate.metrics, before, getattr(task, "METRICS", ()))
    evaluation = compare.compare(names, before, after, known)
    labels = evaluation.get("labels")
    evaluation["baselines"] = baselines.measure(task, renderer, prepared.training_rows(), test, after, names, labels, progress)
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
        "hub": run.read_json(publish.FILE),
        "head": _head(resolved),
        "environment": environment(resolved),
        "loss_unit": getattr(resolved.task, "LOSS_UNIT", "supervised token"),
        "reasons": dict(resolved.reasons),
        "stages": run.read_json("stages.json") or {},
        "command": known.get("command"),
        "inputs": {"model": known.get("model"), "data": known.get("data")},
    }


def _head(resolved: Resolved) -> dict[str, Any] | None:
    """The layer that the task put on the model, and its classes; None where the model writes text."""
    if resolved.task.FORM not in ("sequence", "token"):
        return None
    return {"kind": resolved.task.FORM, "labels": list(resolved.task_options.labels)}


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
