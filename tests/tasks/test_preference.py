"""Preference learning: the losses and gradients are TRL's, however a step is cut, and a job learns what it is shown."""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tunery import tasks
from tunery.data.pairs import PairRenderer
from tunery.data.render import Sequence as TokenSequence
from tunery.data.rows import read_rows
from tunery.data.tokenised import Tokenised, tokenise
from tunery.errors import InputError
from tunery.evaluate import compare, predictions
from tunery.models.load import load_model, load_tokenizer
from tunery.progress import Quiet
from tunery.recipe import Named, from_mapping
from tunery.run import Run
from tunery.sharding._engine import Engine
from tunery.tasks.preference import Options
from tunery.train import attention, learners, loop, preference_pairs, reference
from tunery.train.forward import FILLED

SUBJECTS = ("the cat", "a river", "my friend", "the teacher", "our garden", "the train")
ENDS = (" likes a long book", " reads cold water and the news", " finds two numbers", " sees an old song of a green tree", " learns")


def text_pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of text whose answers differ in length; neighbours have different prompts."""
    rng = random.Random(seed)
    rows = []
    for n in range(count):
        chosen, rejected = rng.sample(ENDS, 2)
        rows.append({"prompt": f"{SUBJECTS[n % 6]} {n}", "chosen": chosen, "rejected": rejected})
    return rows


@dataclass(frozen=True)
class Data:
    """Text pairs, tokenised as a base model's tokenizer has them."""

    rows: list[dict[str, str]]
    tokens: Tokenised
    tokenizer: Any


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Data:
    folder = tmp_path_factory.mktemp("pairs")
    rows = text_pairs(6)
    (folder / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = None
    stored = tokenise(str(folder / "a.jsonl"), None, PairRenderer(tokenizer), folder / "cache")
    return Data(rows, Tokenised([(stored, np.arange(len(rows)))], 256), tokenizer)


def models(folder: Path, dtype: str = "float32") -> tuple[Any, Any]:
    """(policy, reference): the reference is the policy a little moved, so that KTO's baseline is not 0; all of the policy is learned."""
    policy = load_model(folder, attention=attention.register())
    fixed = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in fixed.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.02)
    kind = getattr(torch, dtype)
    return policy.to(kind).requires_grad_(True), fixed.to(kind)


def learner_of(options: Options, share: bool = True) -> Any:
    return learners.get(tasks.get("preference"), options, share)


def ours(
    policy: Any, fixed: Any, rows: Any, options: Options, run: Run, share: bool = True, parts: Sequence[Sequence[int]] | None = None
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step of all the rows, handed over in `parts` as several processes would have them."""
    learner = learner_of(options, share)
    known = learner.before_training(fixed, rows, run, "train", Quiet())
    every = np.arange(len(rows))
    learner.begin_step(policy, known, every)
    if options.loss == "kto":
        assert learner.baseline > 0.1
    total = 0.0
    for part in parts or [every.tolist()]:
        total += loop.accumulate(policy, learner, [known[i] for i in part], float(known.supervised.sum()))
    gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return total, gradients


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", from_mapping({"model": "m", "data": {"train": "none.jsonl"}}))


# ---- exact against TRL ----


def trl_batch(kind: str, rows: Tokenised) -> dict[str, Any]:
    """The same tokens as TRL's own collators lay them out."""
    sides = [preference_pairs.sides_of(rows[n]) for n in range(len(rows))]

    def split(side: Any) -> tuple[list[int], list[int]]:
        at = int(np.flatnonzero(side.weights)[0])
        return side.tokens[:at].tolist(), side.tokens[at:].tolist()

    if kind == "dpo":
        from trl.trainer.dpo_trainer import DataCollatorForPreference

        examples = [{"prompt_ids": split(c)[0], "chosen_ids": split(c)[1], "rejected_ids": split(r)[1]} for c, r in sides]
        return dict(DataCollatorForPreference(pad_token_id=2)(examples))
    if kind == "kto":
        from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

        unpaired = [(*split(c), True) for c, _ in sides] + [(*split(r), False) for _, r in sides]
        ends = [end for _, end, _ in unpaired]
        exchanged = [ends[-1], *ends[:-1]]  # as KTOTrainer does to each batch
        return dict(
            DataCollatorForUnpairedPreference(pad_token_id=2)(
                [
                    {"prompt_ids": p, "completion_ids": e, "KL_completion_ids": k, "label": good}
                    for (p, e, good), k in zip(unpaired, exchanged, strict=True)
                ]
            )
        )
    from trl.experimental.utils import DPODataCollatorWithPadding

    def columns(prompt: list[int], end: list[int], name: str) -> dict[str, list[int]]:
        return {
            f"{name}_input_ids": prompt + end,
            f"{name}_attention_mask": [1] * len(prompt + end),
            f"{name}_labels": [-100] * len(prompt) + end,
        }

    examples = [{**columns(*split(c), "chosen"), **columns(*split(r), "rejected")} for c, r in sides]
    collated: dict[str, Any] = DPODataCollatorWithPadding(pad_token_id=2)(examples)
    return collated


def theirs(
    kind: str, folder: Path, data: Data, tmp_path: Path, rows: Tokenised | None = None, dtype: str = "float32", **settings: Any
) -> tuple[float, Any]:
    """TRL's loss and gradients of one batch of all the pairs."""
    from datasets import Dataset

    policy, fixed = models(folder, dtype)
    for model in (policy, fixed):
        model.set_attn_implementation("eager")
    common: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": [], "gradient_checkpointing": False}
    common |= {"per_device_train_batch_size": 12, **settings}
    feed: dict[str, Any] = {"train_dataset": Dataset.from_list(data.rows), "processing_class": data.tokenizer}
    trainer: Any
    if kind == "dpo":
        from trl import DPOConfig, DPOTrainer

        trainer = DPOTrainer(model=policy, ref_model=fixed, args=DPOConfig(**common), **feed)
    elif kind == "kto":
        from trl import KTOConfig, KTOTrainer

        trainer = KTOTrainer(model=policy, ref_model=fixed, args=KTOConfig(**common), **feed)
    elif kind == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        trainer = ORPOTrainer(model=policy, args=ORPOConfig(**common), **feed)
    else:
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        trainer = CPOTrainer(model=policy, args=CPOConfig(loss_type="simpo", **common), **feed)
    batch = trl_batch(kind, rows or data.tokens)
    loss = trainer.get_batch_loss_metrics(policy, batch)[0] if kind in ("orpo", "simpo") else trainer.compute_loss(policy, batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in policy.named_parameters()}


def assert_same(first: tuple[float, Any], second: tuple[float, Any]) -> None:
    assert first[0] == pytest.approx(second[0], abs=1e-5)
    assert set(first[1]) == set(second[1])
    assert max(g.abs().max() for g in second[1].values()) > 1e-3
    for name, gradient in first[1].items():
        torch.testing.assert_close(gradient, second[1][name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dpo": ({}, {}),
    "dpo, beta": ({"beta": 0.4}, {"beta": 0.4}),
    "dpo with nll (RPO)": ({"nll_weight": 0.7}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
    "orpo": ({"loss": "orpo", "nll_on_prompt": True}, {"beta": 0.1}),
    "kto": ({"loss": "kto"}, {}),
    "kto, weights": ({"loss": "kto", "beta": 0.3, "desirable_weight": 0.5, "undesirable_weight": 1.5}, {"beta": 0.3, "desirable_weight": 0.5, "undesirable_weight": 1.5}),
    "simpo": ({"loss": "simpo"}, {"beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
    "simpo, smoothing and nll": (
        {"loss": "simpo", "label_smoothing": 0.1, "beta": 2.5, "gamma": 0.3, "nll_weight": 0.5},
        {"label_smoothing": 0.1, "beta": 2.5, "simpo_gamma": 0.3, "cpo_alpha": 0.5},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_trls(case: str, data: Data, tiny_llama: Path, run: Run, tmp_path: Path) -> None:
    own, settings = CASES[case]
    options = Options.model_validate(own)
    expected = theirs(options.loss, tiny_llama, data, tmp_path / "trl", **settings)
    assert_same(ours(*models(tiny_llama), data.tokens, options, run), expected)


@pytest.mark.parametrize("case", ["dpo", "orpo", "kto", "simpo"])
def test_in_bf16_the_gradient_is_no_further_from_float32_than_trls(
    case: str, data: Data, tiny_llama: Path, run: Run, tmp_path: Path
) -> None:
    own, settings = CASES[case]
    options = Options.model_validate(own)
    _, exact = ours(*models(tiny_llama), data.tokens, options, run)
    (run.path / reference.FILE).unlink(missing_ok=True)

    def distance(gradients: dict[str, torch.Tensor]) -> float:
        return float(torch.stack([(gradients[n].float() - g).square().sum() for n, g in exact.items()]).sum().sqrt())

    mine = distance(ours(*models(tiny_llama, "bfloat16"), data.tokens, options, run)[1])
    trls = distance(theirs(options.loss, tiny_llama, data, tmp_path / "trl", dtype="bfloat16", **settings)[1])
    assert 0 < mine <= 1.2 * trls


def test_over_phi3_and_cut_sides_too(data: Data, tiny_phi3: Path, run: Run, tmp_path: Path) -> None:
    shorter = Tokenised([(data.tokens.files[0], np.arange(6))], 7)
    assert shorter.truncated > 0
    options = Options()
    expected = theirs("dpo", tiny_phi3, data, tmp_path / "trl", rows=shorter)
    assert_same(ours(*models(tiny_phi3), shorter, options, run), expected)


def test_label_smoothing_is_a_mixture_with_the_exchanged_pair(data: Data, tiny_llama: Path, run: Run, tmp_path: Path) -> None:
    class Exchanged:
        max_length = 256

        def __len__(self) -> int:
            return len(data.tokens)

        def __getitem__(self, n: int) -> TokenSequence:
            from tunery.data.pairs import join, part

            return join(*reversed(part(data.tokens[n])))

    whole = theirs("dpo", tiny_llama, data, tmp_path / "trl")[0]
    other = theirs("dpo", tiny_llama, data, tmp_path / "trl", rows=Exchanged())[0]  # type: ignore[arg-type]
    found, _ = ours(*models(tiny_llama), data.tokens, Options(label_smoothing=0.2), run)
    assert found == pytest.approx(0.8 * whole + 0.2 * other, abs=1e-5)
    assert abs(whole - other) > 1e-3


def test_our_tokens_of_text_pairs_are_those_that_trl_makes(data: Data, tiny_llama: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    trainer = DPOTrainer(
        model=models(tiny_llama)[0], args=config, train_dataset=Dataset.from_list(data.rows), processing_class=data.tokenizer
    )
    made = list(trainer.train_dataset)  # type: ignore[arg-type]
    assert len(made) == len(data.tokens)
    for n, row in enumerate(made):
        for side, name in zip(preference_pairs.sides_of(data.tokens[n]), ("chosen_ids", "rejected_ids"), strict=True):
            assert side.tokens.tolist() == row["prompt_ids"] + row[name]
            assert side.weights.tolist() == [0] * len(row["prompt_ids"]) + [1] * len(row[name])


# ---- however it is cut ----


@pytest.mark.parametrize("loss", ["dpo", "orpo", "kto", "simpo"])
def test_a_step_is_the_same_however_it_is_cut(loss: Any, data: Data, tiny_llama: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into batches, packs or processes, with shared prompts or without, with logits in chunks."""
    options = Options(loss=loss, nll_weight=0.5)
    whole = ours(*models(tiny_llama), data.tokens, options, run)
    assert_same(ours(*models(tiny_llama), data.tokens, options, run, share=False), whole)
    assert_same(ours(*models(tiny_llama), data.tokens, options, run, parts=[[3, 0], [1, 2, 4], [5]]), whole)
    monkeypatch.setattr("tunery.train.forward.LOGITS", 5)
    monkeypatch.setattr(preference_pairs, "PACK_TOKENS", 1)
    assert_same(ours(*models(tiny_llama), data.tokens, options, run), whole)


def test_rows_that_cannot_share_a_pack_give_the_same(data: Data, tiny_llama: Path, run: Run) -> None:
    whole = ours(*models(tiny_llama), data.tokens, Options(), run)
    policy, fixed = models(tiny_llama)
    policy.rows_apart = True
    assert_same(ours(policy, fixed, data.tokens, Options(), run), whole)


def test_both_sides_of_a_pair_are_in_one_batch_and_share_their_prompt(data: Data, tiny_llama: Path, run: Run) -> None:
    policy, fixed = models(tiny_llama)
    learner = learner_of(Options())
    known = learner.before_training(fixed, data.tokens, run, "train", Quiet())
    (batch,) = learner.batches(policy, [known[n] for n in range(6)])
    (packed,) = batch.packs
    sides = [side.tokens for pair in batch.pairs for side in pair.sides]
    needed = {tuple(s[:k].tolist()) for s in sides for k in range(1, len(s))}  # the nodes of the prefix tree, last tokens left out
    assert 0 <= len(packed.tokens) - len(needed) < FILLED
    assert len(packed.tokens) < packed.real_tokens
    alone = learner_of(Options(), share=False)
    (apart,) = (p for b in alone.batches(policy, [known[n] for n in range(6)]) for p in b.packs)
    assert 0 <= len(apart.tokens) - sum(len(s) - 1 for s in sides) < FILLED


def test_kto_is_measured_on_answers_to_other_prompts(data: Data) -> None:
    class Rows:
        max_length = 9

        def __init__(self, chosen: list[int]) -> None:
            self.chosen = chosen

        def __len__(self) -> int:
            return len(self.chosen)

        def __getitem__(self, n: int) -> TokenSequence:
            return data.tokens[self.chosen[n]]

    rows: Any = Rows([0, 1, 1, 2])
    for n, other in ((0, 3), (1, 0), (2, 0), (3, 2)):  # the second of the two alike looks past the first
        own, theirs_ = preference_pairs.sides_of(rows[n])[0], preference_pairs.sides_of(rows[other])
        prompt = own.tokens[: np.flatnonzero(own.weights)[0]]
        for made, side in zip(preference_pairs.mismatched_sides(rows, n), theirs_, strict=True):
            answer = side.tokens[side.weights > 0]
            assert made.tokens.tolist() == [*prompt, *answer][:9]
            assert made.weights.tolist() == ([0] * len(prompt) + [1] * len(answer))[:9]


# ---- the reference ----


def test_the_reference_is_computed_once_and_belongs_to_its_rows(
    data: Data, tiny_llama: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, fixed = models(tiny_llama)
    learner = learner_of(Options(loss="kto"))
    first = learner.before_training(fixed, data.tokens, run, "train", Quiet())
    assert len(first) == 6
    assert first.supervised.tolist() == [1.0] * 6
    valid = Tokenised([(data.tokens.files[0], np.array([4, 2]))], 256)
    learner.before_training(fixed, valid, run, "valid", Quiet())
    for n in range(6):  # row by row, by transformers alone
        for k, side in enumerate(preference_pairs.sides_of(data.tokens[n])):
            ids = torch.from_numpy(side.tokens.astype(np.int64))[None]
            with torch.no_grad():
                logs = fixed(input_ids=ids).logits[0, :-1].log_softmax(-1)
            expected = (logs[torch.arange(len(ids[0]) - 1), ids[0, 1:]] * torch.from_numpy(side.weights[1:])).sum()
            assert first[n].reference[k] == pytest.approx(float(expected), abs=1e-4)
    with monkeypatch.context() as patch:
        patch.setattr(reference, "side_log_probs", lambda *a, **k: pytest.fail("computed a second time"))
        again = learner.before_training(policy, data.tokens, run, "train", Quiet())  # by then the model is another
        assert again.known["matched"].tolist() == first.known["matched"].tolist()
        assert again.known["mismatched"].shape == (6, 2)
        # The same rows in packs of another composition: equal but for the order of summing.
        of_valid = learner.before_training(policy, valid, run, "valid", Quiet()).known["matched"]
        np.testing.assert_allclose(of_valid, first.known["matched"][[4, 2]], rtol=1e-6)
    other = Tokenised([(data.tokens.files[0], np.arange(5))], 256)
    assert learner.before_training(policy, other, run, "train", Quiet()).known["matched"].shape == (5, 2)


def test_the_reference_file_is_whole_or_not_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    reference.write(run, "train", "abc", {"matched": np.ones((2, 2), np.float32)})
    monkeypatch.setattr("safetensors.numpy.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        reference.write(run, "valid", "def", {"matched": np.zeros((1, 2), np.float32)})
    found = reference.read(run, "train", "abc")
    assert found is not None
    assert found["matched"].tolist() == [[1, 1], [1, 1]]
    assert reference.read(run, "train", "other") is None
    assert reference.read(run, "valid", "def") is None
    assert sorted(p.name for p in run.path.iterdir() if p.is_file()) == ["recipe.yaml", "reference.safetensors"]


def test_without_a_reference_nothing_is_computed(data: Data, run: Run) -> None:
    rows = learner_of(Options(loss="orpo")).before_training(None, data.tokens, run, "train", Quiet())
    assert rows[0].reference is None
    assert not (run.path / reference.FILE).exists()


# ---- options ----


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"los": "dpo"}, "unknown key `task.los`; did you mean `loss`?"),
        ({"loss": "ppo"}, "'dpo', 'orpo', 'kto' or 'simpo'"),
        ({"gamma": 0.5}, "`gamma` is a setting of the loss simpo; `loss: dpo` reads beta, label_smoothing, nll_weight"),
        ({"loss": "orpo", "label_smoothing": 0.1}, "`label_smoothing` is a setting of the loss dpo or simpo"),
        ({"beta": 0}, "greater than 0"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"nll_on_prompt": True}, "set nll_weight, or leave nll_on_prompt out"),
        ({"loss": "kto", "desirable_weight": 0, "undesirable_weight": 0}, "nothing is learned"),
    ],
)
def test_a_wrong_option_is_refused_with_the_mend(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        tasks.of(Named(name="preference", options=options))
    assert problem in str(caught.value)


@pytest.mark.parametrize(("loss", "beta"), [("dpo", 0.1), ("orpo", 0.1), ("kto", 0.1), ("simpo", 2.0)])
def test_defaults_depend_on_the_loss_and_survive_being_written(loss: str, beta: float) -> None:
    task, options = tasks.of(Named(name="preference", options={"loss": loss}))
    assert (options.beta, task.FORM) == (beta, "pairs")
    assert tasks.of(Named(name="preference", options=options.model_dump(mode="json")))[1] == options


# ---- a job ----


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
