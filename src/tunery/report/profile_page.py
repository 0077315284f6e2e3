"""`profile.html`: where the time and the memory of a run went, on one page that opens offline, in the manner of report.html."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from tunery.profile import record
from tunery.report import charts, profile_charts
from tunery.report.profile_content import gather
from tunery.run import Run, write_text


def write_page(run: Run, measure: bool = True) -> Path | None:
    """Write the page from the run's profile.json, and return its path; None for a run that is not profiled.

    measure: find out what this machine reaches, if that is not known yet, to compare with it; that takes some seconds once.
    """
    if not record.wanted(run):
        return None
    known = record.read(run)
    if measure and "machine" not in known and known.get("training", {}).get("device") == "cpu":
        record.add(run, machine=_machine(known["training"]["dtype"]))
    file = run.path / record.PAGE
    write_text(file, page(run).encode("utf-8", "replace").decode("utf-8"))
    return file


def _machine(dtype: str) -> dict[str, Any]:
    from tunery.plan import calibration

    rates = calibration.rates()
    return {"name": rates.name, "rates": {kind: of[dtype] for kind, of in rates.rate.items()}, "library_bytes": rates.library_bytes}


def page(run: Run) -> str:
    """The page's HTML."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    content = gather(run)
    drawn = {
        "stages": charts.stage_seconds(content["stage_seconds"]),
        "parts": profile_charts.parts(content["drawn_parts"]),
        "memory": profile_charts.memory(content["drawn_memory"]),
    }
    here = files("tunery.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "profile.html.j2").read_text(encoding="utf-8"))
    return template.render(
        **content,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        charts={name: Markup(svg) if svg else None for name, svg in drawn.items()},  # our own SVG, whose texts matplotlib escaped
    )
