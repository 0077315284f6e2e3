"""The exports of a run, or of a bare model: what the exporters need, gathered from where it lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import methods, tasks
from tunery.data.render import Renderer
from tunery.errors import InputError
from tunery.evaluate.by_answer import SLACK
from tunery.evaluate.held_out import held_out
from tunery.evaluate.predictions import read, rows_of
from tunery.export import get
from tunery.export.head_proof import make_head_probes, proof_sequences
from tunery.export.probes import make_probes
from tunery.export.prompts import proof_prompts
from tunery.export.source import ExportSource
from tunery.infer.open_engine import load_run
from tunery.models.heads import Head, head_of
from tunery.models.load import context_length, load_tokenizer
from tunery.models.source import local_folder
from tunery.progress import Progress
from tunery.recipe import Recipe
from tunery.run import Run
from tunery.tasks._head import HeadRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunery.data.rows import Row
    from tunery.infer.engine import Engine

PROBES = "probes.json"


def export_run(
    run: Run,
    recipe: Recipe,
    chosen: Sequence[tuple[str, Any]],
    renderer: Any,
    test: Sequence[Row],
    evaluation: Any,
    progress: Progress,
) -> dict[str, Any]:
    """Make what the recipe asks for, each in the folder of its name inside the run; the report's `exports`.

    What a run that was stopped had already made is kept. Raises ProofError when an export is not the same model.
    """
    source = of_run(run, recipe, renderer, test, evaluation, progress)
    done: dict[str, Any] = run.read_json("exports.json") or {}
    for name, options in chosen:
        if name in done and (run.path / name).is_dir():
            continue
        progress.say(f"exporting: {name}")
        entry = get(name).export(source, run.path / name, options)
        done[name] = {**entry, "path": name}
        run.write_json("exports.json", done)
        progress.say(
            f"exported: {name}, greedy match {entry['greedy_match']:.4f}, largest logit difference {entry['max_logit_difference']:.2g}"
        )
    return done


def of_run(run: Run, recipe: Recipe, renderer: Any, test: Sequence[Row], evaluation: Any, progress: Progress) -> ExportSource:
    """The source of a run's exports. The probes' ids are stored with the run the first time."""
    folder = local_folder(recipe.model, progress.say)
    task, options = tasks.of(recipe.task)
    head = Head(task.FORM, tuple(options.labels)) if task.FORM in ("sequence", "token") else None
    adapter = run.adapter if run.adapter.is_dir() else None  # a method that trains the base itself leaves none
    assert recipe.train.max_length is not None
    max_length = recipe.train.max_length
    probes = run.read_json(PROBES)
    if probes is None:
        probes = make_head_probes(renderer) if head else make_probes(renderer)
        run.write_json(PROBES, probes)

    def trained() -> PreTrainedModel:
        return load_run(run, dtype="float32")[0]

    if head:
        rows = (renderer.sequences(row)[0].cut(max_length, renderer.tail) for row in test)
        sequences = proof_sequences(renderer, context_length(folder), rows)
        fitted = _fitted(recipe)
        return ExportSource(folder, adapter, [], probes, (), trained, progress=progress, head=head, sequences=sequences, fitted=fitted)
    asked = [renderer.prompt(row).ids for row in test] if test and "prediction" in read(run.predictions_file("after"))[0] else []
    measure = None
    if evaluation is not None and test:
        after, name = read(run.predictions_file("after")), evaluation["primary"]
        longest = max(
            (len(renderer.tokenizer(line["reference"], add_special_tokens=False).input_ids) for line in after if "reference" in line),
            default=1,
        )

        def measure(engine: Engine) -> dict[str, Any]:
            tokens = recipe.evaluate.max_new_tokens or longest + SLACK
            bounds, labels = evaluation["after"][name], evaluation.get("labels")
            return held_out(engine, renderer, test, after, name, bounds, tokens, max_length, progress, labels)

    return ExportSource(
        base_folder=folder,
        adapter=adapter,
        prompts=proof_prompts(renderer, context_length(folder), asked),
        probes=probes,
        stop_ids=renderer.stop_ids,
        trained=trained,
        held_out=measure,
        progress=progress,
        fitted=_fitted(recipe),
    )


def _fitted(recipe: Recipe) -> Callable[[PreTrainedModel], PreTrainedModel] | None:
    """See `ExportSource.fitted`."""
    method: Any = methods.get(recipe.method.name)
    if not getattr(method, "QUANTISES", False):
        return None
    options = method.Options.model_validate(recipe.method.options)
    own = {"bf16": "bfloat16", "fp32": "float32"}[recipe.train.precision]
    return lambda base: method.dequantised(base, options, own)


def export_one(name: str, to: str, out: Path, progress: Progress) -> dict[str, Any]:
    """`tunery export`: a run or a bare model's name in one form, `merged`, `onnx` or `onnx:int4`, as the folder `out`."""
    form, _, precision = to.partition(":")
    exporter = get(form)
    fields = exporter.Options.model_fields
    if precision and "precision" not in fields:
        raise InputError(f"--to {to}: `{form}` has no precision to choose; write --to {form}")
    allowed = getattr(fields["precision"].annotation, "__args__", ()) if precision else ()
    if precision and precision not in allowed:
        raise InputError(f"--to {to}: the precision `{precision}` is not known; choose {', '.join(allowed)}")
    options = exporter.Options.model_validate({"precision": precision} if precision else {})
    if (Path(name) / "recipe.yaml").is_file():
        run = Run.open(name)
        recipe = run.recipe()
        task, task_options = tasks.of(recipe.task)
        renderer = task.renderer(load_tokenizer(local_folder(recipe.model, progress.say)), task_options)
        evaluation = (run.read_json("report.json") or {}).get("evaluation")
        rows: list[Row] = []
        if evaluation and run.predictions_file("after").is_file():
            rows = rows_of(run)
        return exporter.export(of_run(run, recipe, renderer, rows, evaluation, progress), out, options)
    folder = local_folder(name, progress.say)
    tokenizer, head = load_tokenizer(folder), head_of(folder)
    if head:
        texts = HeadRenderer(tokenizer, head.labels)
        sequences = proof_sequences(texts, context_length(folder))
        bare = ExportSource(folder, None, [], make_head_probes(texts), (), progress=progress, head=head, sequences=sequences)
        return exporter.export(bare, out, options)
    renderer = Renderer(tokenizer)
    prompts = proof_prompts(renderer, context_length(folder))
    bare = ExportSource(folder, None, prompts, make_probes(renderer), renderer.stop_ids, progress=progress)
    return exporter.export(bare, out, options)
