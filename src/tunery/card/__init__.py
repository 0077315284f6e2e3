"""The model card: a Hugging Face README.md for a run and for each of its exports, from report.json alone.

    from tunery import card
    card.write(run)          # README.md in the run directory and in every export that lies in it

Format: https://huggingface.co/docs/hub/model-cards. Every number in a card is the report's, rounded as the report's page rounds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunery.card import body, loading, metadata
from tunery.report.words import mapping
from tunery.run import Run, write_text

FILE = "README.md"


def write(run: Run) -> list[Path]:
    """Write the card of the run and one into each export in it; the files written. A run without a report gets none."""
    report = run.read_json("report.json")
    if report is None:
        return []
    exports = mapping(report.get("exports"))
    folders = {name: run.path / str(mapping(entry).get("path")) for name, entry in exports.items()}
    written = [write_into(folder, report, name) for name, folder in folders.items() if folder.is_dir()]
    write_text(run.path / FILE, text(report, None, run.path))
    return [run.path / FILE, *written]


def write_into(folder: Path, report: Mapping[str, Any], form: str, entry: Mapping[str, Any] | None = None, repo: str | None = None) -> Path:
    """Write the card of the export `form` that lies in `folder`; the file.

    `entry` is its line of `exports` when the report does not hold it; `repo` names the hub's repository when the folder goes there.
    """
    if entry is not None:
        report = {**report, "exports": {**mapping(report.get("exports")), form: dict(entry)}}
    write_text(folder / FILE, text(report, form, folder, repo))
    return folder / FILE


def text(report: Mapping[str, Any], form: str | None, folder: Path, repo: str | None = None) -> str:
    """The card's whole text. `form`: the export it is for, None for the run directory.

    `folder` is only asked which files lie there (a chat template, the GGUF file's name), for the code that loads them.
    """
    from huggingface_hub import ModelCard

    how = loading.code(report, form, folder, repo)
    card = ModelCard(f"---\n{metadata.of(report, form).to_yaml()}\n---\n\n{body.of(report, form, how)}")
    return str(card).rstrip() + "\n"
