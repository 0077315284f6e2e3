"""The exports of a run, or of a bare model: what the exporters need, gathered from where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import InputError
from tunery.evaluate.held_out import held_out
from tunery.evaluate.predictions import SLACK, read, rows_of
from tunery.export import get
from tunery.export.probes import make_probes
from tunery.export.prompts import proof_prompts
from tunery.export.source import ExportSource
from tunery.infer.open_engine import load_run
from tunery.models.load import context_length, load_tokenizer
from tunery.models.source import local_folder
from tunery.progress import Progress
from tunery.recipe import Recipe
from tunery.run import Run

if TYPE_CHECKING:
    from tunery.data.render import Renderer
    from tunery.data.rows import Row
    from tunery.infer.engine import Engine

PROBES = "probes.json"


def export_run(
    run: Run,
    recipe: Recipe,
    chosen: Sequence[tuple[str, Any]],
    renderer: Renderer,
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


def of_run(run: Run, recipe: Recipe, renderer: Renderer, test: Sequence[Row], evaluation: Any, progress: Progress) -> ExportSource:
    """The source of a run's exports. The probes' ids are stored with the run the first time."""
    folder = local_folder(recipe.model, progress.say)
    probes = run.read_json(PROBES)
    if probes is None:
        probes = make_probes(renderer)
        run.write_json(PROBES, probes)
    asked = [renderer.prompt(row).ids for row in test] if test and "prediction" in read(run.predictions_file("after"))[0] else []
    measure = None
    if evaluation is not None and test:
        after, name = read(run.predictions_file("after")), evaluation["primary"]
        longest = max(
            (len(renderer.tokenizer(line["reference"], add_special_tokens=False).input_ids) for line in after if "reference" in line),
            default=1,
        )
        assert recipe.train.max_length is not None
        max_length = recipe.train.max_length

        def measure(engine: Engine) -> dict[str, Any]:
            tokens = recipe.evaluate.max_new_tokens or longest + SLACK
            return held_out(engine, renderer, test, after, name, evaluation["after"][name], tokens, max_length, progress)

    return ExportSource(
        base_folder=folder,
        adapter=run.adapter,
        prompts=proof_prompts(renderer, context_length(folder), asked),
        probes=probes,
        stop_ids=renderer.stop_ids,
        trained=lambda: load_run(run, dtype="float32")[0],
        held_out=measure,
        progress=progress,
    )


def export_one(name: str, to: str, out: Path, progress: Progress) -> dict[str, Any]:
    """`tunery export`: a run or a bare model's name in one form, `merged`, `onnx` or `onnx:int4`, as the folder `out`."""
    from tunery.data.render import Renderer

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
        renderer = Renderer(load_tokenizer(local_folder(recipe.model, progress.say)))
        evaluation = (run.read_json("report.json") or {}).get("evaluation")
        rows: list[Row] = []
        if evaluation and run.predictions_file("after").is_file():
            rows = rows_of(run)
        return exporter.export(of_run(run, recipe, renderer, rows, evaluation, progress), out, options)
    folder = local_folder(name, progress.say)
    renderer = Renderer(load_tokenizer(folder))
    prompts = proof_prompts(renderer, context_length(folder))
    bare = ExportSource(folder, None, prompts, make_probes(renderer), renderer.stop_ids, progress=progress)
    return exporter.export(bare, out, options)
