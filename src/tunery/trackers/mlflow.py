"""MLflow: a run in an experiment of a tracking server, or of a local database."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunery import __version__
from tunery.errors import InputError, MissingExtraError
from tunery.recipe import Options as _Options
from tunery.recipe import Recipe
from tunery.run import Run
from tunery.trackers.content import numbers, results, settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

SUMMARY = "a run in MLflow: settings, every step, results and the report"
STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
TAKEN_ALONG = ("report.json", "report.html", "README.md")
LONGEST = 500
"""Characters of a setting's value: what MLflow's older servers take."""
BATCH = 100
"""Settings in one request: the most that MLflow takes."""


class Options(_Options):
    """`uri`: the tracking server, else MLFLOW_TRACKING_URI. `experiment`: made when it is not there."""

    uri: str | None = None
    experiment: str = "tunery"


def require(options: Options) -> None:
    """Raise MissingExtraError unless MLflow is installed, InputError when nothing says where to track."""
    if importlib.util.find_spec("mlflow") is None:
        raise MissingExtraError("track: MLflow is not installed; install it with: pip install 'tunery[track]'")
    if not (options.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        raise InputError(
            "track: MLflow needs an address; set MLFLOW_TRACKING_URI, or write {name: mlflow, uri: http://127.0.0.1:5000} under `track`"
        )


class MLflow:
    """A run at MLflow. Metric names are those of metrics.jsonl; results are logged once, at the last step."""

    def __init__(self, client: MlflowClient, identity: str, run: Run, done: int) -> None:
        self._client, self.id, self._run, self._done = client, identity, run, done

    def steps(self, lines: Sequence[Mapping[str, Any]]) -> None:
        new = [line for line in lines if line["step"] > self._done]  # a resumed run's repeated steps are equal to what is there
        for start in range(0, len(new), BATCH):
            self._log([(name, value, line["step"]) for line in new[start : start + BATCH] for name, value in numbers(line).items()])
        self._done = max((line["step"] for line in new), default=self._done)

    def end(self, report: Mapping[str, Any]) -> None:
        self._log([(name, value, self._done) for name, value in results(report).items()])
        self._client.set_tag(self.id, "tunery.status", str(report.get("status")))
        for name in TAKEN_ALONG:
            if (self._run.path / name).is_file():
                self._client.log_artifact(self.id, str(self._run.path / name))
        self._client.set_terminated(self.id, STATUS.get(str(report.get("status")), "FAILED"))

    def _log(self, values: list[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for start in range(0, len(values), 10 * BATCH):  # 1000 metrics: the most that MLflow takes at once
            part = values[start : start + 10 * BATCH]
            self._client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value, step in part])


def begin(run: Run, recipe: Recipe, options: Options, known: str | None) -> MLflow:
    """See `Tracker.begin`."""
    # MLflow tries a server that does not answer seven times, for minutes; a person who mistyped an address should hear of it at once.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient(tracking_uri=options.uri)
    tags = {"tunery.run": str(run.path.resolve()), "tunery.version": __version__}
    if known is not None:
        client.update_run(known, status="RUNNING")
        for name, value in tags.items():
            client.set_tag(known, name, value)
        return MLflow(client, known, run, max((m.step for m in client.get_metric_history(known, "loss")), default=0))
    experiment = client.get_experiment_by_name(options.experiment)
    identity = experiment.experiment_id if experiment else client.create_experiment(options.experiment)
    made = client.create_run(identity, run_name=run.path.resolve().name, tags=tags).info.run_id
    values = [Param(name, str(value)[:LONGEST]) for name, value in settings(recipe).items()]
    for start in range(0, len(values), BATCH):
        client.log_batch(made, params=values[start : start + BATCH])
    return MLflow(client, made, run, 0)
