"""A whole job that is tracked: what the trackers have is what metrics.jsonl has, also when the run was stopped on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jobs import write_job
from tracked import Said, Server

from tunery import pipeline
from tunery.errors import InputError, Interrupted
from tunery.run import Run
from tunery.trackers import observers


def test_a_job_that_is_stopped_and_resumed(mlflow_server: Server, tiny_llama: Path, tmp_path: Path, said: Said) -> None:
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = write_job(
        tmp_path,
        tiny_llama,
        track=["tensorboard", {"mlflow": {"uri": mlflow_server.address, "experiment": "job"}}],
        train={"epochs": 1, "rows_per_step": 8, "checkpoint_every": 4},
        evaluate={"forgetting_tokens": 0, "limit": 8},
    )

    class Stops(Said):
        def show(self, what: str, done: float, total: float | None = None, detail: str = "") -> None:
            if detail.startswith("step 6/"):
                raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        pipeline.finetune(recipe, tmp_path / "run", progress=Stops())
    run = Run.open(tmp_path / "run")
    client = MlflowClient(tracking_uri=mlflow_server.address)
    identity = run.read_json(observers.FILE)["mlflow"]
    assert client.get_run(identity).info.status == "KILLED"
    report = pipeline.resume(run.path, said).report

    assert not [line for line in said.lines if line.startswith("track:")]
    lines = run.metrics()
    assert len(lines) == 12
    found = client.get_run(identity)
    assert found.info.status == "FINISHED"
    assert found.data.params["train.epochs"] == "1.0"
    assert not [name for name in found.data.params if name.startswith("track")]
    for name in ("loss", "learning_rate", "grad_norm", "supervised_tokens"):
        history = sorted((m.step, m.value) for m in client.get_metric_history(identity, name))
        assert history == [(line["step"], line[name]) for line in lines]
    events: Any = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    metric, after = next(iter(report["evaluation"]["after"].items()))
    assert found.data.metrics[f"after/{metric}"] == after["value"]
    assert sorted(f.path for f in client.list_artifacts(identity)) == ["README.md", "report.html", "report.json"]


def test_what_cannot_be_tracked_is_refused_before_a_run_is_made(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for track, message in (
        (["mlflow"], "track: MLflow needs an address"),
        (["mlfow"], "track: `mlfow` is not known; did you mean `mlflow`"),
        (["tensorboard", "tensorboard"], "track: `tensorboard` is named twice"),
        ([{"name": "tensorboard", "foldr": "x"}], "unknown key `track.foldr`; did you mean `folder`"),
    ):
        recipe = write_job(tmp_path, tiny_llama, track=track)
        with pytest.raises(InputError, match=message):
            pipeline.finetune(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
