"""The whole job on a tiny model: what it leaves, and that stopping it anywhere changes nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from jobs import write_job

import tunery
from tunery import pipeline
from tunery.errors import DataError, InputError, Interrupted
from tunery.run import Run

SCHEMA = {
    "data": {"train_rows", "trained_tokens", "supervised_tokens", "truncated_rows", "dropped_rows", "duplicate_rows", "leaked_rows"},
    "train": {
        "seconds", "steps", "rows_per_second", "tokens_per_second", "peak_memory_bytes", "trainable_parameters", "total_parameters",
        "first_loss", "final_loss",
    },
    "evaluation": {"rows", "before", "after"},
    "environment": {"python", "torch", "cpu", "device", "seed"},
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> pipeline.Result:
    folder = tmp_path_factory.mktemp("job")
    return tunery.finetune(write_job(folder, tiny_llama), run=folder / "run")


def steady(report: dict[str, Any]) -> dict[str, Any]:
    """What must be the same each time: all but times, memory, and where things lie."""
    train = {k: v for k, v in report["train"].items() if "second" not in k and "memory" not in k}
    return {"train": train, "evaluation": report["evaluation"], "data": report["data"], "status": report["status"]}


def test_the_report_has_every_promised_key(finished: pipeline.Result) -> None:
    report = json.loads(finished.run.report_file.read_text())
    assert report == finished.report
    assert (report["schema"], report["status"], report["method"], report["task"]) == (1, "succeeded", "lora", "chat")
    for part, keys in SCHEMA.items():
        assert keys <= set(report[part]), part
    for when in ("before", "after"):
        for name, found in report["evaluation"][when].items():
            assert found["low"] <= found["value"] <= found["high"], name


def test_the_task_was_learned(finished: pipeline.Result) -> None:
    evaluation = finished.report["evaluation"]
    assert evaluation["primary"] == "accuracy"
    assert evaluation["labels"] == ["no", "yes"]
    assert evaluation["after"]["loss"]["value"] < evaluation["before"]["loss"]["value"] - 1
    assert evaluation["difference"]["loss"]["p_value"] < 0.01


def test_the_run_directory_is_as_described(finished: pipeline.Result) -> None:
    names = {p.name for p in finished.path.iterdir()}
    assert {
        "recipe.yaml",
        "metrics.jsonl",
        "checkpoints",
        "adapter",
        "report.json",
        "report.html",
        "log.txt",
        "data",
        "inputs.json",
    } <= names
    assert {"predictions-before.jsonl", "predictions-after.jsonl"} <= names
    lines = finished.run.metrics()
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert {"loss", "learning_rate", "grad_norm", "tokens", "supervised_tokens", "seconds"} <= set(lines[0])
    assert not [
        p for p in finished.path.rglob("*") if (p.name.startswith(".") and p.name != ".lock") or p.suffix in (".bin", ".pt", ".pkl")
    ]


def test_losses_are_pinned(finished: pipeline.Result) -> None:
    """The same numbers on every machine, to what float32 sums in another order can differ by."""
    losses = [line["loss"] for line in finished.run.metrics()]
    assert losses[:3] == pytest.approx(PINNED, abs=2e-4)


PINNED = [6.363288, 5.633574, 5.316608]


def test_the_resolved_recipe_repeats_the_run_elsewhere(finished: pipeline.Result, tmp_path: Path) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(finished.path, copy)
    again = tunery.finetune(copy / "recipe.yaml", run=tmp_path / "again")
    assert steady(again.report) == steady(finished.report)
    assert (again.path / "adapter" / "adapter_model.safetensors").read_bytes() == (
        finished.path / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("target", "calls"),
    [
        ("tunery.evaluate.predictions.predict", 0),
        ("tunery.evaluate.predictions.predict", 1),
        ("tunery.train.loop.validate", 0),
        ("tunery.methods.lora.save", 2),
        ("tunery.evaluate.forgetting.probe", 1),
        ("tunery.pipeline.export_run", 0),
        ("tunery.report.page.write_page", 0),
    ],
)
def test_stopped_in_any_stage_and_resumed_is_the_same(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, calls: int
) -> None:
    changes = {"data": {"valid": 0.1}, "train": {"epochs": 1, "checkpoint_every": 2}}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = tunery.finetune(write_job(tmp_path / "a", tiny_llama, **changes), run=tmp_path / "whole")
    module, _, name = target.rpartition(".")
    import importlib

    real = getattr(importlib.import_module(module), name)
    seen = 0

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == calls + 1:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(target, broken)
    with pytest.raises(Interrupted, match="tunery resume"):
        tunery.finetune(write_job(tmp_path / "b", tiny_llama, **changes), run=tmp_path / "stopped")
    monkeypatch.setattr(target, real)
    resumed = tunery.resume(tmp_path / "stopped")
    assert steady(resumed.report) == steady(whole.report)
    assert (resumed.path / "adapter" / "adapter_model.safetensors").read_bytes() == (
        whole.path / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


def test_resuming_a_finished_run_changes_nothing(finished: pipeline.Result) -> None:
    before = (finished.path / "adapter" / "adapter_model.safetensors").read_bytes()
    again = tunery.resume(finished.path)
    assert steady(again.report) == steady(finished.report)
    assert (finished.path / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_without_test_rows_nothing_is_evaluated(tiny_llama: Path, tmp_path: Path) -> None:
    result = tunery.finetune(write_job(tmp_path, tiny_llama, data={"test": None}, train={"max_steps": 2}), run=tmp_path / "run")
    assert result.report["evaluation"] is None
    assert not list(result.path.glob("predictions-*"))
    assert "Before" not in result.run.page_file.read_text() or "not evaluated" in result.run.page_file.read_text().lower()


def test_text_rows_and_a_share_for_test(tiny_phi3: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"The model learns the question {n}. A river."}) + "\n" for n in range(60))
    )
    recipe = write_job(tmp_path, tiny_phi3, task="text", data={"train": "text.jsonl", "test": 0.2}, train={"epochs": 3})
    result = tunery.finetune(recipe, run=tmp_path / "run")
    evaluation = result.report["evaluation"]
    assert evaluation["primary"] == "loss"
    assert evaluation["after"]["loss"]["value"] < evaluation["before"]["loss"]["value"] - 1


def test_continuing_from_another_run(finished: pipeline.Result, tiny_llama: Path, tmp_path: Path) -> None:
    recipe = write_job(tmp_path, tiny_llama, train={"init_from": str(finished.path), "max_steps": 1})
    result = tunery.finetune(recipe, run=tmp_path / "run")
    assert result.report["train"]["first_loss"] < finished.report["train"]["first_loss"] - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {"name": "lorra"}}, "method `lorra` is not known; did you mean `lora`"),
        ({"method": {"rnak": 4}}, "unknown key `method.rnak`; did you mean `rank`"),
        ({"task": "chatt"}, "task `chatt` is not known; did you mean `chat`"),
        ({"evaluate": {"metrics": ["acuracy"]}}, "no metric `acuracy`; did you mean `accuracy`"),
        ({"sharding": "zero9"}, "sharding `zero9` is not known"),
        ({"export": ["onx"]}, "did you mean `onnx`"),
        ({"train": {"early_stopping": 2}}, "add data.valid"),
        ({"train": {"max_length": 99999}}, "longer than the context"),
        ({"model": "smolm2-135m"}, "smollm2-135m"),
        ({"task": "text"}, "text rows"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(tiny_llama: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    recipe = write_job(tmp_path, tiny_llama, **changes)
    with pytest.raises(InputError) as e:
        tunery.finetune(recipe, run=tmp_path / "run")
    assert message in str(e.value)
    assert not (tmp_path / "run").exists()


def test_a_wrong_row_leaves_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = write_job(tmp_path, tiny_llama)
    with (tmp_path / "train.jsonl").open("a") as f:
        f.write('{"messages": []}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:97: "):
        tunery.finetune(recipe, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_changed_model_is_noticed(finished: pipeline.Result, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    inputs = json.loads((copy / "inputs.json").read_text())
    inputs["model"]["sha256"]["config.json"] = "0" * 64
    (copy / "inputs.json").write_text(json.dumps(inputs))
    with pytest.raises(InputError, match="not the one that this run began with"):
        tunery.resume(copy)


def test_a_run_opens_only_where_one_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        Run.open(tmp_path)
