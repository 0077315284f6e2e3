"""What leaves a run when it has its report: a card beside every model, and a folder to the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunery import card
from tunery.errors import InputError
from tunery.export import hub, of_run
from tunery.progress import Progress
from tunery.run import Run

FILE = "hub.json"
"""In the run directory: what the hub answered to the push that the recipe asks for."""
ORDER = ("adapter", "merged")
"""Which export goes to the hub when the recipe names none; after these, the first that there is."""


def to_hub(run: Run, report: Mapping[str, Any], options: hub.Options, progress: Progress) -> dict[str, Any]:
    """Push one of the run's exports with its card; `{"form", "repo", "url", "commit", "private"}`. Raises InputError, RunError."""
    exports = {name: entry for name, entry in (report.get("exports") or {}).items() if (run.path / entry["path"]).is_dir()}
    form = options.form or next((name for name in (*ORDER, *exports) if name in exports), None)
    if form is None or form not in exports:
        raise InputError(f"export.hub: the run has no {form or 'export'} to push; add it to `export`, or name one of {', '.join(exports)}")
    folder = run.path / exports[form]["path"]
    try:
        card.write_into(folder, report, form, repo=options.repo)
        return {"form": form, **hub.push(folder, options, _message(report), progress)}
    finally:
        card.write_into(folder, report, form)  # here it is loaded from its folder


def once(run: Run, report: Mapping[str, Any], options: hub.Options, progress: Progress) -> dict[str, Any]:
    """As `to_hub`, and remembered in the run: a run that is resumed or reported again does not push again."""
    done: dict[str, Any] | None = run.read_json(FILE)
    if done is None or done["repo"] != options.repo:
        done = to_hub(run, report, options, progress)
        run.write_json(FILE, done)
    return done


def export_to_hub(name: str, repo: str, progress: Progress) -> dict[str, Any]:
    """`tunery export RUN --to hub:org/name`: what the run exported, else its adapter or merged model, which is made for it. Private."""
    if not (Path(name) / "recipe.yaml").is_file():
        raise InputError(f"--to hub:{repo}: only a run has results to tell beside its model; name a run directory, not {name}")
    run, options = Run.open(name), hub.Options(repo=repo)
    hub.require(options)
    report = run.read_json("report.json")
    if report is None or report.get("status") != "succeeded":
        raise InputError(f"{name}: this run has not ended well, so there is nothing to push; go on with `tunery resume {name}`")
    if any((run.path / entry["path"]).is_dir() for entry in (report.get("exports") or {}).values()):
        return to_hub(run, report, options, progress)
    form = "adapter" if run.adapter.is_dir() else "merged"
    with tempfile.TemporaryDirectory(prefix="tunery-hub-") as work:
        entry = of_run.export_one(name, form, Path(work) / form, progress)
        card.write_into(Path(work) / form, report, form, entry, repo)
        return {"form": form, **hub.push(Path(work) / form, options, _message(report), progress)}


def export_one(name: str, to: str, out: Path, progress: Progress) -> dict[str, Any]:
    """`tunery export`: the folder, with a card where a run's report tells what it is."""
    entry = of_run.export_one(name, to, out, progress)
    if (Path(name) / "recipe.yaml").is_file() and (report := Run.open(name).read_json("report.json")) is not None:
        form = to.partition(":")[0]
        card.write_into(out, report, form, entry)
    return entry


def _message(report: Mapping[str, Any]) -> str:
    return f"Fine-tuned with {report.get('method')} by Tunery {(report.get('environment') or {}).get('tunery') or ''}".rstrip()
