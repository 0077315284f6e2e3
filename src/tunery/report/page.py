"""`report.html`: one file about one run, which opens offline and is read in a minute.

Its style, its charts (SVG) and its texts are all inside; a content security policy forbids the browser to load or run
anything. Predictions come from whoever wrote the data, so every text is escaped by the template engine.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from tunery.report import charts
from tunery.report.content import gather
from tunery.run import Run, write_text


def write_page(run: Run) -> Path:
    """Write the run's `report.html` from what lies in its directory, and return its path.

    Reads report.json, metrics.jsonl, predictions-{before,after}.jsonl, plan.json and recipe.yaml; what is missing is said
    to be missing. Works for runs that failed or were stopped.
    """
    html = page(run)
    # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes a question mark.
    write_text(run.page_file, html.encode("utf-8", "replace").decode("utf-8"))
    return run.page_file


def page(run: Run) -> str:
    """The page's HTML."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    content = gather(run)
    drawn = {
        "before_after": charts.before_after(content["before"], content["after"]),
        "loss": charts.loss_curve(content["steps"], content["loss_unit"]),
        "stages": charts.stage_seconds(content["stages"]),
    }
    here = files("tunery.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        **content,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        charts={name: Markup(svg) if svg else None for name, svg in drawn.items()},  # our own SVG, whose texts matplotlib escaped
    )
