"""A run knows what it began with, can be moved, and belongs to one process at a time."""

import json
import shutil
from pathlib import Path

import pytest
from jobs import write_job

import tunery
from tunery import inputs
from tunery.errors import DataError, InputError
from tunery.evaluate.again import evaluate_again
from tunery.export.of_run import export_one
from tunery.pipeline import Result
from tunery.progress import Quiet
from tunery.run import Run


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("job")
    return tunery.finetune(write_job(folder, tiny_llama, train={"max_steps": 3}), run=folder / "run")


@pytest.fixture
def moved(finished: Result, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.path, tmp_path / "elsewhere"))


def test_a_moved_run_is_evaluated_and_exported_from_its_own_data(finished: Result, moved: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (moved / "predictions-after.jsonl").read_text().splitlines()]
    assert {line["source"] for line in lines} == {"data/test.jsonl"}
    assert evaluate_again(moved, None, False, Quiet())["metrics"] == finished.report["evaluation"]["after"]
    assert export_one(str(moved), "merged", tmp_path / "merged", Quiet())["greedy_match"] >= 0.999


def test_changed_or_missing_data_is_noticed_with_its_hash(moved: Path) -> None:
    sha256 = json.loads((moved / inputs.FILE).read_text())["data"]["data/train.jsonl"]
    with (moved / "data" / "train.jsonl").open("a") as f:
        f.write("\n")
    with pytest.raises(DataError, match=f"not the file that the run began with, whose SHA-256 is {sha256}"):
        tunery.resume(moved)
    (moved / "data" / "train.jsonl").unlink()
    with pytest.raises(DataError, match=f"missing; put it back, its SHA-256 is {sha256}"):
        tunery.resume(moved)


def test_a_missing_model_is_named_with_its_hash(moved: Path, tmp_path: Path) -> None:
    recipe = (moved / "recipe.yaml").read_text()
    name = next(line for line in recipe.splitlines() if line.startswith("model:"))
    (moved / "recipe.yaml").write_text(recipe.replace(name, f"model: {tmp_path / 'gone'}"))
    with pytest.raises(InputError, match=r"gone does not exist.*SHA-256 of model\.safetensors [0-9a-f]{64}"):
        tunery.resume(moved)


def test_one_process_at_a_time(moved: Path) -> None:
    with inputs.alone(Run.open(moved)), pytest.raises(InputError, match="another process is working on this run"):
        tunery.resume(moved)


def test_what_a_killed_process_left_half_written_is_cleared(moved: Path) -> None:
    halves = [moved / ".onnx.abc", moved / "checkpoints" / ".step-9.abc"]
    for half in halves:
        half.mkdir()
        (half / "file").write_text("x")
    tunery.resume(moved)
    assert not any(half.exists() for half in halves)
    assert (moved / "adapter" / "adapter_config.json").is_file()


def test_a_run_that_cannot_begin_leaves_nothing(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inputs.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        tunery.finetune(write_job(tmp_path, tiny_llama), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_of_one_name_are_kept_apart(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_job(tmp_path / name, tiny_llama)
    recipe = write_job(
        tmp_path, tiny_llama, data={"train": ["a/train.jsonl", {"path": "b/train.jsonl", "weight": 0.5}]}, train={"max_steps": 1}
    )
    run = tunery.finetune(recipe, run=tmp_path / "run").run
    assert sorted(p.name for p in run.data.iterdir()) == ["test.jsonl", "train-2.jsonl", "train.jsonl"]
    train = run.recipe().data.train
    assert not isinstance(train, str)
    assert [(s.path, s.weight) for s in train] == [("data/train.jsonl", 1.0), ("data/train-2.jsonl", 0.5)]
