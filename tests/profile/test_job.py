"""The whole job with a profile: the same results, a page beside the report, over a stop and over several processes."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from jobs import write_job

import tunery
from tunery.cli import main
from tunery.errors import Interrupted
from tunery.plan import calibration
from tunery.plan.rates import Rates
from tunery.profile import record
from tunery.run import Run

RATES = Rates(
    "a test's machine",
    {
        kind: {"bfloat16": 1e11, "float32": 5e10}
        for kind in ("matrix", "tiles", "thin", "attention", "attention_backward", "moved", "streamed", "dequantised")
    },
    {"bfloat16": 1e-6, "float32": 1e-6},
    100 << 20,
    {"bfloat16": 1.0, "float32": 1.0},
    measured=True,
)


@pytest.fixture(autouse=True)
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "rates", lambda again=False: RATES)


def steps_of(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in run.metrics()]


def same(one: Run, other: Run) -> bool:
    files = ("adapter/adapter_model.safetensors", "predictions-after.jsonl", "evaluation.json")
    return steps_of(one) == steps_of(other) and all((one.path / f).read_bytes() == (other.path / f).read_bytes() for f in files)


@pytest.fixture(scope="module")
def plain(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("plain")
    return tunery.finetune(write_job(folder, tiny_llama), run=folder / "run").run


def test_the_command_writes_a_page_and_changes_no_result(
    plain: Run, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_job(tmp_path, tiny_llama)
    monkeypatch.setattr(sys, "argv", ["tunery", "train", str(recipe), "--run", str(tmp_path / "run"), "--profile", "--json"])
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["profile"] == str(tmp_path / "run" / "profile.html")
    run = Run(tmp_path / "run")
    assert same(run, plain)
    assert not (plain.path / "profile.json").exists()
    assert not (plain.path / "profile.html").exists()

    profile = record.read(run)
    assert list(profile["stages"]) == ["start", "prepare", "load", "evaluate before", "train", "evaluate after", "compare", "export"]
    for stage in profile["stages"].values():
        assert 0 < stage["end_bytes"] <= stage["peak_bytes"]
    assert sum(stage["seconds"] for stage in profile["stages"].values()) <= profile["whole_seconds"]
    training = profile["training"]
    inside = training["trial"]["seconds"] + training["steps_seconds"] + training["profiling_seconds"]
    assert 0 < inside <= profile["stages"]["train"]["seconds"] + 0.01
    assert profile["machine"]["rates"]["matrix"] == 5e10

    html = (run.path / "profile.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|(?:src|href)\s*=\s*[\"']?(?!#)[^\"'\s>]*//", html)
    assert "default-src 'none'" in html
    for text in (
        "Products with the model",
        "Adapter",
        "Optimiser",
        "Activations kept",
        "trial of the largest batch",
        "a test&#39;s machine",
    ):
        assert text in html

    monkeypatch.setattr(sys, "argv", ["tunery", "resume", str(run.path)])
    with pytest.raises(SystemExit):
        main.run()
    err = capsys.readouterr().err
    assert "Output head and loss" in err
    assert "Memory at its height" in err


class _Stops:
    """Presses Ctrl-C when step `at` has been shown."""

    def __init__(self, at: int) -> None:
        self.at = f"step {at}/"

    def show(self, what: str, done: float, total: float | None = None, detail: str = "") -> None:
        if detail.startswith(self.at):
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    def say(self, message: str) -> None:
        pass


@pytest.mark.parametrize("at", [2, 12, 20])
def test_a_run_that_was_stopped_is_profiled_once_over_both_sittings(at: int, plain: Run, tiny_llama: Path, tmp_path: Path) -> None:
    """24 steps, of which 12 to 14 are profiled: stopped before, within, and after them."""
    with pytest.raises(Interrupted):
        tunery.finetune(write_job(tmp_path, tiny_llama), run=tmp_path / "run", progress=_Stops(at), profile=True)
    run = Run(tmp_path / "run")
    first = record.read(run)
    assert ("step" in first) == (at == 20)
    assert "<h2>" in (run.path / "profile.html").read_text(encoding="utf-8")
    tunery.resume(run.path)
    assert same(run, plain)
    second = record.read(run)
    assert second["step"]["seconds"] > 0
    if at == 20:
        assert second["step"] == first["step"]
    assert second["training"]["trial"] == first["training"]["trial"]
    assert second["training"]["steps_seconds"] > first["training"]["steps_seconds"]
    assert second["stages"]["train"]["seconds"] > first["stages"]["train"]["seconds"]
    assert second["whole_seconds"] > first["whole_seconds"]


@pytest.mark.parametrize("stage", ["zero3", "fsdp"])
def test_of_several_processes_the_first_is_profiled(stage: str, tiny_llama: Path, tmp_path: Path) -> None:
    if stage.startswith("zero") and shutil.which("c++") is None:
        pytest.skip("DeepSpeed's communication on a CPU needs a compiler")
    recipe = write_job(tmp_path, tiny_llama, sharding={"stage": stage, "processes": 2}, train={"max_steps": 6})
    runs = [tunery.finetune(recipe, run=tmp_path / name, profile=name == "profiled").run for name in ("plain", "profiled")]
    assert steps_of(runs[0]) == steps_of(runs[1])
    profile = record.read(runs[1])
    assert profile["training"]["processes"] == 2
    step = profile["step"]
    assert sum(sum(part.values()) for part in step["parts"].values()) == pytest.approx(step["seconds"], rel=1e-3)
    assert {"matrix", "adapter", "attention", "head", "optimiser"} <= set(step["flops"]) | set(step["parts"])
    assert "Of the first of 2 processes" in (runs[1].path / "profile.html").read_text(encoding="utf-8")


def test_a_run_that_fails_has_a_page(tiny_llama: Path, tmp_path: Path) -> None:
    from tunery.errors import RunError

    with pytest.raises(RunError):
        tunery.finetune(write_job(tmp_path, tiny_llama, train={"learning_rate": 1e30, "clip": None}), run=tmp_path / "run", profile=True)
    html = (tmp_path / "run" / "profile.html").read_text(encoding="utf-8")
    assert "No training step was profiled" in html
    assert "load the model" in html


def test_a_head_and_an_encoder_are_profiled(tiny_bert: Path, tmp_path: Path) -> None:
    from labelled_jobs import write_labelled_job

    run = tunery.finetune(write_labelled_job(tmp_path, tiny_bert, "classify"), run=tmp_path / "run", profile=True).run
    parts = record.read(run)["step"]["parts"]
    assert {"matrix", "adapter", "attention", "head", "elementwise", "optimiser", "data"} <= set(parts)
