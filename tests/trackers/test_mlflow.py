"""Against a real MLflow server on this machine, over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from tracked import LINES, REPORT, Said, Server, train

from tunery.errors import InputError
from tunery.recipe import Recipe
from tunery.run import Run
from tunery.trackers import mlflow, observers


def _client(server: Server) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=server.address)


def _history(server: Server, run: Run, name: str) -> list[tuple[int, float]]:
    identity = run.read_json(observers.FILE)["mlflow"]
    return sorted((m.step, m.value) for m in _client(server).get_metric_history(identity, name))


def test_a_run_and_its_resumption_are_one_run_there(mlflow_server: Server, run: Run, recipe: Recipe, said: Said) -> None:
    chosen = [("mlflow", mlflow.Options(uri=mlflow_server.address, experiment="one"))]
    first = observers.begin(run, recipe, chosen, said)
    train(run, LINES[:5])
    first.end({"status": "cancelled"})
    identity = run.read_json(observers.FILE)["mlflow"]
    assert _client(mlflow_server).get_run(identity).info.status == "KILLED"

    run.write_json("report.json", REPORT)
    second = observers.begin(run, recipe, chosen, said)
    train(run, LINES[3:], kept=3)  # from the checkpoint of step 3: two steps are done again
    second.end(REPORT)

    assert said.lines == []
    assert run.read_json(observers.FILE) == {"mlflow": identity}
    client = _client(mlflow_server)
    assert [r.info.run_id for r in client.search_runs([client.get_experiment_by_name("one").experiment_id])] == [identity]
    assert _history(mlflow_server, run, "loss") == [(line["step"], line["loss"]) for line in LINES]
    assert _history(mlflow_server, run, "valid_loss") == [(6, 2.0)]
    found = client.get_run(identity)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "headlines"
    assert found.data.params["method.rank"] == "8"
    assert found.data.params["model"] == "smollm2-135m"
    assert found.data.metrics["after/exact_match"] == 0.75
    assert found.data.metrics["before/exact_match/high"] == 0.5
    assert found.data.metrics["export/onnx/greedy_match"] == 1.0
    assert [f.path for f in client.list_artifacts(identity)] == ["report.json"]


def test_a_server_that_goes_away_is_said_once_and_taken_up_again(
    mlflow_server: Server, run: Run, recipe: Recipe, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    chosen = [("mlflow", mlflow.Options(uri=mlflow_server.address))]
    watching = observers.begin(run, recipe, chosen, said)
    train(run, LINES[:1])
    watching.look()
    while not _history(mlflow_server, run, "loss"):
        pass
    mlflow_server.stop()
    try:
        train(run, LINES[1:], kept=1)
        watching.end(REPORT)
        assert len(said.lines) == 1
        assert said.lines[0].startswith("track: mlflow failed (")
        assert "the run goes on without it" in said.lines[0]
        observers.begin(run, recipe, chosen, said).end(REPORT)  # a resumed run does not need it either
        assert len(said.lines) == 2
        assert said.lines[1].startswith("track: mlflow cannot go on with this run (")
    finally:
        mlflow_server.start()
    watching = observers.begin(run, recipe, chosen, said)
    watching.end(REPORT)  # what it missed is in metrics.jsonl
    assert len(said.lines) == 2
    assert _history(mlflow_server, run, "loss") == [(line["step"], line["loss"]) for line in LINES]


def test_a_wrong_address_is_refused_before_anything_is_trained(
    run: Run, recipe: Recipe, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    options = mlflow.Options(uri="http://me:hunter2@127.0.0.1:9")
    with pytest.raises(InputError, match="track: mlflow cannot be used") as refused:
        observers.begin(run, recipe, [("mlflow", options)], said)
    assert "hunter2" not in str(refused.value)
    assert run.read_json(observers.FILE) is None


def test_an_address_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match="MLflow needs an address; set MLFLOW_TRACKING_URI"):
        mlflow.require(mlflow.Options())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    mlflow.require(mlflow.Options())
