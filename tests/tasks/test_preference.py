"""Preference learning: the losses and gradients are TRL's, however a step is cut."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_pairs import text_pairs

from tunery import tasks
from tunery.data.pairs import PairRenderer
from tunery.data.render import Sequence as TokenSequence
from tunery.data.tokenised import Tokenised, tokenise
from tunery.errors import InputError
from tunery.models.load import load_model, load_tokenizer
from tunery.progress import Quiet
from tunery.recipe import Named, from_mapping
from tunery.run import Run
from tunery.tasks.preference import Options
from tunery.train import attention, learners, loop, preference_pairs, reference
from tunery.train.forward import FILLED


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
