"""Jobs of preference learning: one learns which answer is preferred, resumes, continues, is exported and measured again."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from text_pairs import ENDS, SUBJECTS

from tunery import tasks
from tunery.data.pairs import PairRenderer
from tunery.data.rows import read_rows
from tunery.errors import InputError
from tunery.evaluate import compare, predictions
from tunery.models.load import load_tokenizer
from tunery.progress import Quiet
from tunery.recipe import Named
from tunery.sharding._engine import Engine
from tunery.train import reference


def chat_pairs(count: int, seed: int) -> str:
    """OpenAI's preference lines: the answer about the river is right where the sentence begins with one."""
    rng = random.Random(seed)
    lines = []
    for n in range(count):
        subject, good, bad = (("A river", "cold water", "a long book"), ("The cat", "a long book", "cold water"))[n % 2]
        asked = f"{subject} {rng.choice(['likes', 'reads', 'finds'])} {rng.randint(0, 999)}?"
        lines.append(
            {
                "input": {"messages": [{"role": "user", "content": asked}]},
                "preferred_output": [{"role": "assistant", "content": good}],
                "non_preferred_output": [{"role": "assistant", "content": bad}],
            }
        )
    return "".join(json.dumps(line) + "\n" for line in lines)


def job(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    (folder / "train.jsonl").write_text(chat_pairs(48, 1))
    (folder / "test.jsonl").write_text(chat_pairs(16, 2))
    return {
        "model": str(model),
        "task": {"name": "preference"},
        "data": {"train": str(folder / "train.jsonl"), "valid": 0.1, "test": str(folder / "test.jsonl")},
        "train": {"rows_per_step": 8, "epochs": 2, "learning_rate": 0.005, "precision": "fp32", "checkpoint_every": 4},
        "evaluate": {"forgetting_tokens": 0},
        **changes,
    }


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("loss", ["dpo", "orpo", "kto", "simpo"])
def test_a_job_learns_which_answer_is_preferred(loss: str, tiny_llama: Path, tmp_path: Path) -> None:
    from tunery.pipeline import finetune

    more = {"beta": 1.0} if loss == "orpo" else {}  # its other half makes both answers likelier, since both are right somewhere
    recipe = job(tmp_path, tiny_llama, task={"name": "preference", "loss": loss, **more})
    result = finetune(recipe, tmp_path / "run", overrides=["train.epochs=5"] if loss == "orpo" else [])
    evaluation, lines = result.report["evaluation"], result.run.metrics()
    written = result.run.recipe().task.options
    assert written == tasks.of(Named(name="preference", options={"loss": loss, **more}))[1].model_dump(exclude_none=True)
    assert ("task.beta" in result.report["reasons"]) is (loss != "orpo")
    assert evaluation["primary"] == "preference_accuracy"
    before, after = evaluation["before"], evaluation["after"]
    assert before["preference_accuracy"]["value"] < 0.75 < after["preference_accuracy"]["value"]
    assert after["reward_accuracy"]["value"] > 0.9
    assert after["reward_margin"]["value"] > after["reward_margin"]["low"] > before["reward_margin"]["value"]
    valid = [line["valid_loss"] for line in lines if "valid_loss" in line]
    assert valid[-1] < lines[0]["loss"]
    if loss == "dpo":
        assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)  # the model is its own reference when it begins
        assert before["reward_margin"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert before["reward_accuracy"]["value"] == 0.5
    assert (result.path / reference.FILE).is_file() is (loss in ("dpo", "kto"))
    assert result.report["data"]["supervised_tokens"] > result.report["data"]["train_rows"]
    rows = [line["length"] for line in predictions.read(result.path / "predictions-after.jsonl")]
    longer = sum((a > b) + (a == b) / 2 for a, b in rows) / len(rows)
    assert evaluation["baselines"]["longer_answer"]["preference_accuracy"]["value"] == longer


def test_a_resumed_run_is_the_same_and_reads_the_reference(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KTO with dropout: its baseline must draw no random numbers. The run is stopped by a failing write, and goes on."""
    from tunery.pipeline import finetune, resume

    recipe = job(tmp_path, tiny_llama, task={"name": "preference", "loss": "kto"}, method={"name": "lora", "dropout": 0.1})
    del recipe["data"]["test"]
    whole = finetune(recipe, tmp_path / "whole")
    steps = {"count": 0}
    original = Engine.step

    def failing(engine: Engine) -> float:
        steps["count"] += 1
        if steps["count"] == 8:
            raise OSError("disk full")
        return original(engine)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", failing)
        with pytest.raises(OSError, match="disk full"):
            finetune(recipe, tmp_path / "stopped")
    monkeypatch.setattr(reference, "side_log_probs", _only_steps(reference.side_log_probs))
    resumed = resume(tmp_path / "stopped")
    assert [line["loss"] for line in resumed.run.metrics()] == [line["loss"] for line in whole.run.metrics()]
    name = "adapter/adapter_model.safetensors"
    assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()


def _only_steps(compute: Any) -> Any:
    """The steps' own baseline may be measured; the reference, which shows its progress, must not be computed again."""

    def watched(model: Any, sides: Any, progress: Any = None, *rest: Any, **more: Any) -> Any:
        assert progress is None, "the reference was computed a second time"
        return compute(model, sides, progress, *rest, **more)

    return watched


def test_a_run_that_goes_on_from_another_is_measured_from_there(tiny_llama: Path, tmp_path: Path) -> None:
    from tunery.pipeline import finetune

    recipe = job(tmp_path, tiny_llama)
    del recipe["data"]["test"]
    first = finetune(recipe, tmp_path / "first")
    second = finetune({**recipe, "train": {**recipe["train"], "init_from": str(first.path)}}, tmp_path / "second")
    assert first.run.metrics()[-1]["loss"] < 0.6
    assert second.run.metrics()[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.parametrize("method", ["qlora", "dora", "full", "ia3"])
def test_training_begins_where_the_reference_is(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Whatever the method does to the base, the first loss is that of a model compared with itself."""
    from tunery.pipeline import finetune

    recipe = job(tmp_path, tiny_llama, method=method, export=["merged" if method == "full" else "adapter"])
    del recipe["data"]["test"]
    first = finetune(recipe, tmp_path / "run", overrides=["train.max_steps=1"]).run.metrics()[0]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["grad_norm"] > 0


@pytest.mark.parametrize("start", ["qlora", "init_from"])
def test_rewards_are_counted_from_the_model_that_training_began_with(start: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Which is not the base as it is: that one is what is measured before training, and its rewards are not 0."""
    from tunery.pipeline import finetune

    # The pairs to measure are those to learn from, so that both references are about the same.
    recipe = job(tmp_path, tiny_llama)
    recipe["data"] = {"train": recipe["data"]["train"], "test": recipe["data"]["train"]}
    if start == "qlora":
        recipe["method"] = "qlora"
    else:
        recipe["train"]["init_from"] = str(finetune(recipe, tmp_path / "first").path)
    result = finetune(recipe, tmp_path / "run", overrides=["train.max_steps=3"])

    tensors = load_file(str(result.path / reference.FILE))
    known = tensors["train.matched"]
    before, after = (predictions.read(result.run.predictions_file(when)) for when in ("before", "after"))
    for lines in (before, after):
        used = torch.tensor([line["reference_log_prob"] for line in lines])
        torch.testing.assert_close(used.sort(0).values, known.sort(0).values, rtol=1e-4, atol=1e-4)
        for line in lines:
            gained = [a - b for a, b in zip(line["log_prob"], line["reference_log_prob"], strict=True)]
            assert line["reward"] == pytest.approx([0.1 * g for g in gained])
    measured = result.report["evaluation"]
    assert measured["before"]["reward_margin"]["value"] != 0.0
    margin = np.mean([line["reward"][0] - line["reward"][1] for line in after])
    assert measured["after"]["reward_margin"]["value"] == pytest.approx(margin)
    assert not (result.path / "forgetting-reference.json").exists()


def test_measuring_again_gives_the_same_accuracy(tiny_llama: Path, tmp_path: Path) -> None:
    from tunery.evaluate.again import evaluate_again
    from tunery.pipeline import finetune

    result = finetune(job(tmp_path, tiny_llama), tmp_path / "run", overrides=["train.max_steps=3"])
    again = evaluate_again(result.path, None, base=False, progress=Quiet())
    after = result.report["evaluation"]["after"]
    base = evaluate_again(result.path, None, base=True, progress=Quiet())
    for found, kept in ((again["metrics"], after), (base["metrics"], result.report["evaluation"]["before"])):
        assert found.keys() == kept.keys() >= {"reward_accuracy", "reward_margin"}
        for name, bounds in kept.items():
            assert found[name] == pytest.approx(bounds, abs=1e-5), name
    other = evaluate_again(result.path, tmp_path / "test.jsonl", base=False, progress=Quiet())
    assert other["metrics"].keys() == {"preference_accuracy", *compare.LIKELIHOOD}  # of other rows the reference is not known
    line = json.loads((result.path / "predictions-after.jsonl").read_text().splitlines()[0])
    assert line["chosen"] in ("cold water", "a long book")
    assert line["prompt"].endswith("?")
    gained = [a - b for a, b in zip(line["log_prob"], line["reference_log_prob"], strict=True)]
    assert line["reward"] == pytest.approx([0.1 * g for g in gained])


@pytest.mark.parametrize("name", ["preference_accuracy", "reward_margin", "loss"])
def test_an_export_is_measured_on_the_same_pairs(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    """By an engine's logits alone: the trained model's own values come out, and of the base the base's."""
    from tunery.evaluate.held_out import held_out
    from tunery.infer.open_engine import load_run
    from tunery.infer.torch_engine import TorchEngine
    from tunery.pipeline import finetune

    result = finetune(job(tmp_path, tiny_llama, export=[]), tmp_path / "run")
    after, rows = predictions.read(result.path / "predictions-after.jsonl"), predictions.rows_of(result.run)
    bounds = result.report["evaluation"]["after"][name]
    for adapted in (True, False):
        model, tokenizer = load_run(result.run, with_adapter=adapted)
        renderer = PairRenderer(tokenizer)
        engine = TorchEngine(model, tokenizer, renderer.stop_ids)
        found = held_out(engine, renderer, rows, after, name, bounds, 8, 128, Quiet())
        if adapted:
            assert found["kept"] is True
            assert found["export_value"] == pytest.approx(bounds["value"], abs=1e-4)
    base = result.report["evaluation"]["before"][name]["value"]
    assert found["export_value"] == pytest.approx(base, abs=1e-4)
    assert base != pytest.approx(bounds["value"], abs=1e-2)


def test_rows_of_another_kind_are_refused_by_line(tiny_llama: Path, tmp_path: Path) -> None:
    from tunery.pipeline import finetune

    recipe = job(tmp_path, tiny_llama)
    with pytest.raises(InputError, match=r"train.jsonl:1: the recipe's task .*preference rows"):
        finetune({**recipe, "task": "chat"}, tmp_path / "run")
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(InputError, match=r"train.jsonl:1: the recipe's task takes preference rows, this is a completion row"):
        finetune(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pairs_about_one_prompt_stay_on_one_side_of_a_split(tiny_llama: Path, tmp_path: Path) -> None:
    from tunery.data.prepare import prepare
    from tunery.recipe import Data as DataPart

    rows = [{"prompt": f"{SUBJECTS[n]}?", "chosen": ENDS[n % 5], "rejected": f"{ENDS[n % 5]} {k}"} for n in range(6) for k in range(4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    renderer = PairRenderer(load_tokenizer(tiny_llama))
    found = prepare(DataPart(train="a.jsonl", test=0.3), renderer, 128, 1024, 0, tmp_path, tmp_path / "cache")
    asked = [{row.value["prompt"] for row in read_rows(str(tmp_path / "a.jsonl")) if (row.line in lines)} for lines in (
        {row.line for row in found.test}, set(range(1, 25)) - {row.line for row in found.test},
    )]  # fmt: skip
    assert asked[0]
    assert asked[1]
    assert not asked[0] & asked[1]
    assert found.stats.duplicate_rows == 0


def test_check_shows_how_far_the_length_tells_the_sides_apart(tiny_llama: Path, tmp_path: Path) -> None:
    from rich.console import Console

    from tunery.cli.check_view import show
    from tunery.data.check import check
    from tunery.recipe import Data as DataPart

    rows = [{"prompt": f"{n}?", "chosen": "a long book and the news" if n % 4 else "no", "rejected": "cold water"} for n in range(8)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    renderer = PairRenderer(load_tokenizer(tiny_llama))
    found = check(DataPart(train="a.jsonl"), renderer, 128, 1024, 0, tmp_path, tmp_path / "cache", kinds=("preference",))
    console = Console(record=True, width=200, file=io.StringIO())
    show(found, console)
    assert found.report()["longer_preferred"] == 0.75
    assert "The preferred answer is the longer one in 75% of the pairs" in console.export_text()


def test_two_processes_are_one(tiny_llama: Path, tmp_path: Path) -> None:
    """KTO's baseline and the tokens of the NLL part are those of the whole step, of which each process has a part."""
    from tunery.pipeline import finetune

    recipe = job(tmp_path, tiny_llama, task={"name": "preference", "loss": "kto", "nll_weight": 0.5})
    del recipe["data"]["test"]
    recipe["train"] |= {"max_steps": 4, "validate_every": 4}
    alone = finetune(recipe, tmp_path / "one").run.metrics()
    together = finetune({**recipe, "sharding": {"stage": "ddp", "processes": 2}}, tmp_path / "two").run.metrics()
    assert len(alone) == 4
    for key in ("loss", "grad_norm", "valid_loss"):
        assert [line[key] for line in together if key in line] == pytest.approx([line[key] for line in alone if key in line], abs=1e-5)
