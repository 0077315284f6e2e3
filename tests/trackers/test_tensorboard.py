"""Event files, read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tracked import LINES, REPORT, Said, train

from tunery.recipe import Recipe
from tunery.run import Run
from tunery.trackers import observers, tensorboard

pytest.importorskip("tensorboard", reason="tensorboard is not installed; pip install 'tunery[track]'")


def _read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_a_run_and_its_resumption_read_as_one(run: Run, recipe: Recipe, said: Said) -> None:
    chosen = [("tensorboard", tensorboard.Options())]
    first = observers.begin(run, recipe, chosen, said)
    train(run, LINES[:5])
    first.end({"status": "cancelled"})
    second = observers.begin(run, recipe, chosen, said)
    train(run, LINES[3:], kept=3)  # from the checkpoint of step 3: two steps are done again
    second.end(REPORT)
    assert said.lines == []
    events = _read(run.path / "tensorboard")
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(line["step"], pytest.approx(line["loss"])) for line in LINES]
    assert [(e.step, e.value) for e in events.Scalars("valid_loss")] == [(6, 2.0)]
    assert [(e.step, e.value) for e in events.Scalars("after/exact_match")] == [(8, 0.75)]
    (text,) = events.Tensors("recipe/text_summary")
    assert b"model: smollm2-135m" in text.tensor_proto.string_val[0]


def test_a_finished_run_that_is_reported_again_adds_nothing_wrong(run: Run, recipe: Recipe, said: Said) -> None:
    chosen = [("tensorboard", tensorboard.Options(folder="events"))]
    train(run, LINES)
    for _ in range(2):
        observers.begin(run, recipe, chosen, said).end(REPORT)
    assert [e.step for e in _read(run.path / "events").Scalars("loss")] == list(range(1, 9))


def test_a_disk_that_gives_up_is_said_once(run: Run, recipe: Recipe, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = observers.begin(run, recipe, [("tensorboard", tensorboard.Options())], said)

    def full(self: Any, lines: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard.TensorBoard, "steps", full)
    train(run, LINES)
    watching.end(REPORT)
    assert len(said.lines) == 1
    assert "No space left on device" in said.lines[0]
