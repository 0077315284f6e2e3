"""Trackers are found by name, and none of them can harm a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tracked import LINES, REPORT, Said, train

from tunery import trackers
from tunery.errors import InputError, MissingExtraError
from tunery.recipe import from_mapping
from tunery.run import Run
from tunery.trackers import content, observers


def test_every_tracker_is_found_by_its_name() -> None:
    assert trackers.names() == ["mlflow", "tensorboard", "wandb"]
    for name in trackers.names():
        assert trackers.get(name).SUMMARY
    with pytest.raises(InputError, match="track: `tensorbord` is not known; did you mean `tensorboard`"):
        trackers.get("tensorbord")


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "wandb"])
def test_what_is_not_installed_is_said_with_the_line_that_installs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = trackers.get(name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tunery\["):
        tracker.require(tracker.Options())


class Slow:
    """A tracker that waits until it may go on."""

    id = "1"

    def __init__(self) -> None:
        self.may = threading.Event()
        self.got: list[list[int]] = []
        self.report: Any = None

    def steps(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self.may.wait(30)
        self.got.append([line["step"] for line in lines])

    def end(self, report: Mapping[str, Any]) -> None:
        self.report = report


def test_a_slow_tracker_holds_nothing_up_and_misses_nothing(run: Run, said: Said) -> None:
    slow = Slow()
    watching = observers.Observers(run.metrics_file, {"slow": slow}, said)
    for n in range(8):
        train(run, LINES[n : n + 1], kept=n)
        watching.look()  # returns although the tracker has taken nothing yet
    assert slow.got == []
    slow.may.set()
    watching.end(REPORT)
    assert [step for batch in slow.got for step in batch] == list(range(1, 9))
    assert len(slow.got) < 8, "what waited is taken together"
    assert slow.report is REPORT
    assert said.lines == []


def test_a_tracker_that_never_answers_is_left_behind(run: Run, said: Said) -> None:
    stuck = Slow()
    watching = observers.Observers(run.metrics_file, {"stuck": stuck}, said)
    train(run, LINES[:1])
    watching.end(REPORT, seconds=0.05)
    stuck.may.set()
    assert said.lines == ["track: stuck did not take everything within 0 s; the run does not wait for it"]


class Exits(Slow):
    def steps(self, lines: Sequence[Mapping[str, Any]]) -> None:
        raise SystemExit(1)


def test_a_library_that_ends_the_process_does_not(run: Run, said: Said) -> None:
    working = Slow()
    working.may.set()
    watching = observers.Observers(run.metrics_file, {"exits": Exits(), "works": working}, said)
    train(run, LINES)
    watching.end(REPORT)
    assert said.lines == ["track: exits failed (SystemExit); the run goes on without it, metrics.jsonl has everything"]
    assert [step for batch in working.got for step in batch] == list(range(1, 9))


def test_lines_are_taken_up_while_they_are_written(run: Run, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "LOOK_SECONDS", 0.01)
    working = Slow()
    working.may.set()
    watching = observers.Observers(run.metrics_file, {"works": working}, said)
    run.metrics_file.write_text(json.dumps(LINES[0]) + "\n" + json.dumps(LINES[1])[:20])
    while not working.got:
        pass
    assert working.got == [[1]], "half a line is none yet"
    with run.metrics_file.open("a") as file:
        file.write(json.dumps(LINES[1])[20:] + "\n")
    while len(working.got) < 2:
        pass
    train(run, LINES[1:3], kept=1)  # a resumed run: the file is another one, and step 2 comes again
    while len(working.got) < 3:
        pass
    watching.end(REPORT)
    assert working.got == [[1], [2], [3]]
    assert said.lines == []


def test_secrets_stay_out_of_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
    text = observers.why(OSError("https://me:word@host/x refused token hunter2"))
    assert text == "OSError: https://…@host/x refused token …"


def test_what_trackers_are_told() -> None:
    recipe = from_mapping({
        "model": "m", "data": {"train": [{"path": "a", "weight": 2.0}]}, "method": {"name": "lora", "rank": 4}, "export": ["adapter", {"onnx": "int4"}],
    })  # fmt: skip
    told = content.settings(recipe)
    assert told["data.train.0.weight"] == 2.0
    assert told["method.rank"] == 4
    assert told["train.seed"] == 0
    assert "train.learning_rate" not in told, "what is not set has no value"
    assert not any(key.startswith("track") for key in told)
    assert content.numbers({"step": 3, "loss": 1.5, "note": "x", "best": True, "bad": float("nan")}) == {"loss": 1.5}
    assert content.results({"evaluation": None, "exports": {}}) == {}
