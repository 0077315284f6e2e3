"""The page: complete, one file, safe against what predictions hold, and there for every kind of run."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tunery.report import write_page
from tunery.run import Run

MakeRun = Callable[..., Run]
VOID = {"meta", "link", "br", "hr", "img", "input", "wbr", "base", "col", "source"}


class Page(HTMLParser):
    """Every tag with its attributes, the visible text, and the problems of nesting."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.problems: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(run: Run) -> tuple[str, Page]:
    path = write_page(run)
    assert path == run.path / "report.html"
    html = path.read_text(encoding="utf-8")
    parsed = Page(html)
    assert parsed.problems == []
    return html, parsed


def loads_nothing(html: str, parsed: Page) -> None:
    assert not parsed.of("script")
    assert not parsed.of("link")
    assert not parsed.of("iframe")
    for tag, attributes in parsed.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}> would run a script"
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"):
                assert (value or "").startswith("#"), f"<{tag} {name}={value!r}> would load something"
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//", html)
    assert not re.search(r"@import|url\(\s*[\"']?(?!#)", html)
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in parsed.of("meta"))


def test_a_whole_run_is_shown(make_run: MakeRun, full_report: dict[str, Any]) -> None:
    html, parsed = page_of(make_run(full_report))
    loads_nothing(html, parsed)
    assert "http" not in html.replace("http-equiv", "")
    accuracy = full_report["evaluation"]
    before, after = (100 * accuracy[side]["accuracy"]["value"] for side in ("before", "after"))
    headings = re.findall(r"<h1>(.*?)</h1>", html)
    assert headings == [f"Accuracy rose from {before:.1f}\u00a0% to {after:.1f}\u00a0%"]
    for expected in (
        "is significant", "Macro-F1", "Bits per byte", "documentation", "25,344", "better", "worse", "within chance",
        "10 of 400 test rows", "✓ right", "✗ wrong", "wrong before, right after", "test.jsonl:1",
        "Duplicate rows", "251,904", "6\u00a0min 53\u00a0s", "2.31\u00a0GB", "4,884,480", "4.85", "+4\u00a0%", "−4\u00a0%",
        "93.12\u00a0%", "3.1e-05", "121.0\u00a0MB",
        "bf16: this CPU has avx512_bf16", "2.13.0", "learning_rate: 0.0005",
        "tunery train examples/headlines/recipe.yaml --run runs/headlines",
    ):  # fmt: skip
        assert " ".join(expected.split()) in parsed.text, expected
    assert len(parsed.of("article")) == 10


def test_charts_are_described_follow_the_theme_and_hold_their_text(make_run: MakeRun, full_report: dict[str, Any]) -> None:
    html, parsed = page_of(make_run(full_report))
    charts = parsed.of("svg")
    assert len(charts) == 3
    assert all(c["role"] == "img" and len(c["aria-label"] or "") > 40 for c in charts)
    assert "Accuracy: before 50.2\u00a0%, after 84.8\u00a0%" in (charts[0]["aria-label"] or "")
    for variable in ("--before", "--after", "--valid", "--ink", "--grid"):
        assert f"var({variable})" in html
    assert "#0102" not in html
    assert "DejaVu Sans'" not in html
    assert "prefers-color-scheme: dark" in html
    ids = [a["id"] for _, a in parsed.tags if a.get("id")]
    assert len(set(ids)) == len(ids), "ids must differ over all charts"
    for used in re.findall(r"url\(#([^)]+)\)", html) + [a["href"][1:] for a in parsed.of("use") if a.get("href")]:  # type: ignore[index]
        assert used in ids


def test_tables_have_headers(make_run: MakeRun, full_report: dict[str, Any]) -> None:
    _, parsed = page_of(make_run(full_report))
    assert len(parsed.of("table")) >= 5
    assert all(a.get("scope") in ("col", "row") for a in parsed.of("th"))
    assert parsed.of("html")[0]["lang"] == "en"


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}</pre></svg><svg onload=alert(3)> $\\frac{x}$ %s"


def evil(value: Any) -> Any:
    """Every text of a report, keys of free choice included, replaced by something hostile."""
    if isinstance(value, dict):
        return {k: evil(v) for k, v in value.items()}
    return [evil(v) for v in value] if isinstance(value, list) else EVIL if isinstance(value, str) else value


def test_nothing_that_a_run_holds_can_become_markup(make_run: MakeRun, full_report: dict[str, Any]) -> None:
    report = evil(copy.deepcopy(full_report))
    report["status"] = "succeeded"
    evaluation = report["evaluation"]
    evaluation["labels"] = ["news", EVIL]
    evaluation["primary"] = EVIL
    for side in ("before", "after", "difference"):
        evaluation[side][EVIL] = evaluation[side]["accuracy"]
    evaluation["forgetting"][EVIL] = evaluation["forgetting"]["code"]
    for part, value in (("stages", 3.0), ("environment", EVIL), ("reasons", EVIL), ("data", EVIL), ("train", EVIL)):
        report[part][EVIL] = value
    report["exports"][EVIL] = {"path": EVIL, "error": EVIL, EVIL: EVIL}
    run = make_run(report)
    line = {"row": 0, "source": EVIL, "line": 1, "prompt": EVIL, "reference": EVIL, "prediction": EVIL, "nll": 1.0, "tokens": 1, "bytes": 1}
    for when in ("before", "after"):
        run.predictions_file(when).write_text(json.dumps(line) + "\n", encoding="utf-8")
    run.recipe_file.write_text(f"model: {EVIL}\n", encoding="utf-8")
    html, parsed = page_of(run)
    loads_nothing(html, parsed)
    assert not parsed.of("img")
    assert len(parsed.of("svg")) == 3
    assert EVIL in "".join(parsed.texts)
    assert "49" not in [t.strip() for t in parsed.texts]  # the template engine did not evaluate it


def test_a_failed_run_has_a_page_with_its_error(make_run: MakeRun, full_report: dict[str, Any]) -> None:
    report = {**full_report, "status": "failed", "error": "the loss is not a number at step 1; lower train.learning_rate"}
    report.update(evaluation=None, exports={}, train=None, stages={})
    run = make_run(report, steps=1)
    for when in ("before", "after"):
        run.predictions_file(when).unlink()
    html, parsed = page_of(run)
    loads_nothing(html, parsed)
    for expected in (
        "The run failed",
        "not a number at step 1",
        "Nothing was evaluated",
        "Nothing was exported",
        "There are no predictions",
        "No training was recorded",
    ):
        assert expected in parsed.text
    assert len(parsed.of("svg")) == 1  # the one step's loss


def test_a_cancelled_run_says_how_to_go_on(make_run: MakeRun, full_report: dict[str, Any]) -> None:
    _, parsed = page_of(make_run({**full_report, "status": "cancelled", "evaluation": None}))
    assert "tunery resume" in parsed.text


def test_without_test_rows_the_page_says_what_to_add(make_run: MakeRun, full_report: dict[str, Any]) -> None:
    _, parsed = page_of(make_run({**full_report, "evaluation": None}))
    assert "Trained, not evaluated" in parsed.text
    assert "Add data.test to measure" in parsed.text


def test_an_empty_folder_has_a_page_too(tmp_path: Path) -> None:
    html, parsed = page_of(Run(tmp_path))
    loads_nothing(html, parsed)
    for expected in (
        "report.json is not in the run directory",
        "recipe.yaml is not in the run directory",
        "metrics.jsonl holds no step",
        "The run has no result yet",
    ):
        assert expected in parsed.text


@pytest.mark.parametrize("steps", [0, 1, 2, 9, 10, 3000])
def test_any_number_of_steps_gives_a_small_page(make_run: MakeRun, full_report: dict[str, Any], steps: int) -> None:
    html, parsed = page_of(make_run(full_report, steps=steps))
    assert len(parsed.of("svg")) == (3 if steps else 2)
    assert ("smoothed" in parsed.text) == (steps >= 10)
    assert len(html) < 250_000


def test_one_metric_alone_and_nothing_but_likelihood(make_run: MakeRun, full_report: dict[str, Any]) -> None:
    for name, title in (("exact_match", "Exact match rose"), ("loss", "Loss fell")):
        report = copy.deepcopy(full_report)
        evaluation = {"rows": 400, **{side: {name: report["evaluation"][side][name]} for side in ("before", "after")}}
        report["evaluation"] = evaluation
        if name == "exact_match":
            run = make_run(report)
        else:
            ask_for_no_answers(run, report)
        _, parsed = page_of(run)
        assert title in parsed.text
        assert "No paired test was recorded" in parsed.text
        assert "not tested" in parsed.text
        assert "The forgetting probe was not run" in parsed.text


def ask_for_no_answers(run: Run, report: dict[str, Any]) -> None:
    """The same run with another report, of a task that is measured by likelihood only."""
    run.write_json("report.json", report)
    line = {"row": 0, "source": "test.jsonl", "line": 1, "nll": 1.0, "tokens": 1, "bytes": 1}
    for when in ("before", "after"):
        run.predictions_file(when).write_text(json.dumps(line) + "\n", encoding="utf-8")


def test_answers_without_a_right_and_wrong_carry_their_nearness(make_run: MakeRun, full_report: dict[str, Any]) -> None:
    report = copy.deepcopy(full_report)
    report["evaluation"]["primary"] = "bits_per_byte"
    run = make_run(report)
    line = {"row": 0, "source": "t", "line": 1, "prompt": "Sum it up", "reference": "the cat sat down", "nll": 1.0, "tokens": 1, "bytes": 1}
    run.predictions_file("before").write_text(json.dumps({**line, "prediction": ""}) + "\n", encoding="utf-8")
    run.predictions_file("after").write_text(json.dumps({**line, "prediction": "a cat sat"}) + "\n", encoding="utf-8")
    _, parsed = page_of(run)
    assert "token F1 0.80" in parsed.text
    assert "(nothing)" in parsed.text
    assert "wrong" not in parsed.text
    assert "wrong before" not in parsed.text


def test_one_missing_file_of_predictions_is_named(make_run: MakeRun, full_report: dict[str, Any]) -> None:
    run = make_run(full_report)
    run.predictions_file("before").unlink()
    _, parsed = page_of(run)
    assert "predictions-before.jsonl is missing" in parsed.text
    assert "(not recorded)" in parsed.text


def test_odd_files_do_not_stop_the_page(make_run: MakeRun, full_report: dict[str, Any]) -> None:
    run = make_run(full_report)
    with run.metrics_file.open("a", encoding="utf-8") as f:
        f.write(json.dumps({"step": 64, "loss": math.nan}) + "\n" + json.dumps({"step": None, "loss": 1.0}) + '\n[1]\n{"step": 65, "lo')
    surrogate = {"row": 0, "prompt": "\ud800 lone", "reference": "a", "prediction": "x" * 5000}
    run.predictions_file("after").write_text(json.dumps(surrogate) + "\n{broken\n", encoding="utf-8")
    run.predictions_file("before").write_text(json.dumps({**surrogate, "prediction": None}) + "\n", encoding="utf-8")
    _, parsed = page_of(run)
    assert "? lone" in parsed.text
    assert "3,800 more characters" in parsed.text
    (run.path / "report.json").write_text("{not json", encoding="utf-8")
    _, parsed = page_of(run)
    assert "can’t be read" in parsed.text


def test_the_page_is_the_same_every_time(make_run: MakeRun, full_report: dict[str, Any]) -> None:
    run = make_run(full_report)
    assert page_of(run)[0] == page_of(run)[0]


def test_importing_the_report_loads_no_heavy_library() -> None:
    code = "import sys, tunery.report; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "tunery.report.page" in loaded
    assert not {"torch", "numpy", "scipy", "matplotlib", "jinja2", "rich"} & set(loaded)
