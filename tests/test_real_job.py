"""The whole job with the real 135 M model: it learns, it stops by itself, and its quantised export still does the task."""

import json
from pathlib import Path

import pytest
from jobs import write_job

import tunery
from tunery.data.render import Renderer
from tunery.infer.open_engine import open_engine
from tunery.infer.sampling import Sampling
from tunery.pipeline import Result

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def finished(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("real")
    recipe = write_job(
        folder,
        smollm2,
        model="smollm2-135m",
        train={"epochs": 1, "learning_rate": 2e-3},
        evaluate={"forgetting_tokens": 2000},
        export=["adapter", {"onnx": "int4"}],
    )
    return tunery.finetune(recipe, run=folder / "run")


def test_the_task_was_learned(finished: Result) -> None:
    evaluation = finished.report["evaluation"]
    assert evaluation["labels"] == ["no", "yes"]
    assert evaluation["before"]["exact_match"]["value"] < 0.3
    assert evaluation["after"]["accuracy"]["value"] > 0.9
    assert evaluation["after"]["exact_match"]["value"] > 0.9
    assert evaluation["difference"]["accuracy"]["difference"] >= 0
    assert set(evaluation["forgetting"]) == {"documentation", "code"}


def test_the_first_loss_is_pinned(finished: Result) -> None:
    """Before any step the loss is the base model's own on the first rows: float32 in any order of sums."""
    assert finished.run.metrics()[0]["loss"] == pytest.approx(FIRST_LOSS, abs=2e-3)


FIRST_LOSS = 7.738726


def test_it_answers_and_stops_by_itself(finished: Result) -> None:
    engine = open_engine(str(finished.path), "torch")
    renderer = Renderer(engine.tokenizer)
    prompt = renderer.prompt_of([{"role": "user", "content": "A river finds cold water 7."}])
    (answer,) = engine.generate([prompt], Sampling(max_new_tokens=64))
    assert engine.tokenizer.decode(answer).strip() == "yes"
    assert list(engine.stream(prompt, Sampling(max_new_tokens=64))) == answer


def test_the_quantised_export_keeps_the_metric_and_answers_alike(finished: Result) -> None:
    entry = json.loads(finished.run.report_file.read_text())["exports"]["onnx"]
    assert entry["precision"] == "int4"
    assert entry["held_out"]["kept"]
    assert entry["held_out"]["metric"] == "accuracy"
    engine = open_engine(str(finished.path), "onnx")
    renderer = Renderer(engine.tokenizer)
    prompt = renderer.prompt_of([{"role": "user", "content": "The cat reads the news 12."}])
    (answer,) = engine.generate([prompt], Sampling(max_new_tokens=64))
    assert engine.tokenizer.decode(answer).strip() == "no"
