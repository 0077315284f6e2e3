"""PEFT's other methods: what each of them learns, keeps and gives to `peft.PeftModel`, on three small architectures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft_methods import HEADS, IDS, METHODS, VIRTUAL, attached, by_peft, logits, scramble
from rows import TokenRow, TokenRows, random_rows
from tiny import training_text

from tunery import methods, tasks
from tunery.errors import InputError
from tunery.methods import trainable
from tunery.models.heads import Head
from tunery.models.load import load_model, load_tokenizer
from tunery.progress import Quiet
from tunery.recipe import from_mapping
from tunery.run import Run
from tunery.train import learners
from tunery.train.loop import Settings, train

pytestmark = pytest.mark.usefixtures("one_thread")

OTHER_SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ia3", {"targets": ["o_proj", "up_proj"], "feedforward": ["up_proj"]}),
    ("oft", {"block_size": 8, "neumann": False}),
    ("oft", {"block_share": True, "targets": ["o_proj"]}),
    ("loha", {"rank": 4, "alpha": 3, "rank_dropout": 0.3, "module_dropout": 0.3}),
    ("lokr", {"rank": 2, "decompose_both": True, "decompose_factor": 8}),
    ("miss", {"rank": 16, "init": "bat", "targets": ["o_proj"]}),
    ("miss", {"rank": 16, "init": "mini", "mini_rank": 8, "dropout": 0.2}),
    ("miss", {"rank": 24}),
    ("vera", {"rank": 8, "dropout": 0.2}),
    ("ln_tuning", {"targets": ["norm"]}),
    ("prompt", {"virtual_tokens": 3, "init": "random"}),
    ("prompt", {"virtual_tokens": 5, "init_text": "Answer with one word, please."}),
    ("prefix", {"virtual_tokens": 4, "init": "random"}),
    ("prefix", {"virtual_tokens": 4, "projection": True, "encoder_hidden_size": 12}),
    ("p_tuning", {"virtual_tokens": 4, "encoder": "lstm", "encoder_hidden_size": 12, "encoder_dropout": 0.2}),
)


def sentences(folder: Path, count: int, start: int = 0) -> TokenRows:
    tokenizer = load_tokenizer(folder)
    rows = TokenRows()
    for text in training_text()[start : start + count]:
        ids = np.array([1, *tokenizer(text)["input_ids"], 2], np.int32)
        weights = np.ones(len(ids), np.float32)
        weights[0] = 0
        rows.append(TokenRow(ids, weights))
    return rows


def learner() -> Any:
    return learners.get(tasks.get("chat"))


def loss_of(model: Any, rows: TokenRows, gradient: bool = False) -> float:
    """The mean loss of a step's rows, as the training loop has it; with its gradient added to the parameters."""
    total, whole = 0.0, float(rows.supervised.sum())
    with torch.set_grad_enabled(gradient):
        for batch in learner().batches(model, rows):
            nats, _ = learner().loss(model, batch)
            if gradient:
                (nats / whole).backward()
            total += nats.item()
    return total / whole


def peft_loss(model: Any, row: TokenRow) -> torch.Tensor:
    """The same of one row alone, from PEFT's model, as a sum."""
    ids = torch.from_numpy(row.tokens.astype(np.int64))[None]
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(row.tokens) :]
    nats = torch.nn.functional.cross_entropy(found[:-1], ids[0, 1:], reduction="none")
    return (nats * torch.from_numpy(row.weights[1:])).sum()


def check_files(
    folder: Path, name: str, out: Path, compare: Callable[..., Any], head: Head | None = None, **options: Any
) -> tuple[Any, torch.Tensor]:
    """Saved, then read by us, by PEFT, and merged: the same logits, and others than at the start."""
    method = methods.get(name)
    model, chosen = attached(folder, name, 1, head=head, **options)
    start = logits(model.eval())
    scramble(model)
    ours = logits(model)
    assert (ours - start).abs().max() > 1e-3
    method.save(model, chosen, out, "the-base")
    again, _ = attached(folder, name, 2, head=head, **options)
    method.load(again.eval(), out)
    assert torch.equal(logits(again), ours)
    theirs = by_peft(folder, out, head)
    compare(logits(theirs), ours, atol=1e-5, rtol=1e-5)
    if method.MERGES:
        compare(logits(theirs.merge_and_unload(safe_merge=True)), ours, atol=1e-5, rtol=1e-5)
    return again, ours


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
@pytest.mark.parametrize("name", METHODS)
def test_peft_loads_what_is_saved_and_merges_it(folders: dict[str, Path], tmp_path: Path, name: str, architecture: str) -> None:
    check_files(folders[architecture], name, tmp_path / "adapter", torch.testing.assert_close)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "the-base"
    assert config["task_type"] == "CAUSAL_LM"
    assert config["inference_mode"] is True
    modules = config.get("target_modules") or []
    assert modules == sorted(modules)  # a set's order would differ from process to process


@pytest.mark.parametrize(("name", "options"), OTHER_SETTINGS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_every_setting_reaches_the_model_and_the_file(tiny_llama: Path, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    check_files(tiny_llama, name, tmp_path / "adapter", torch.testing.assert_close, **options)


@pytest.mark.parametrize(("architecture", "kind"), [("bert", "sequence"), ("bert", "token"), ("phi3", "sequence")])
@pytest.mark.parametrize("name", METHODS)
def test_a_head_is_trained_and_saved_beside_the_adapter(
    folders: dict[str, Path], tmp_path: Path, name: str, architecture: str, kind: str
) -> None:
    """The head of the model that is loaded begins elsewhere, so a head that is not in the file would show."""
    head = HEADS[kind]
    model, ours = check_files(folders[architecture], name, tmp_path, torch.testing.assert_close, head)
    assert ours.shape == ((1, 2) if kind == "sequence" else (1, IDS.shape[1], 3))
    learned = trainable(model)
    own = [n for n in learned if n.split(".")[0] in ("score", "classifier")]
    assert own
    assert len(own) < len(learned)
    model.train()
    model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in learned.values())


@pytest.mark.parametrize("name", METHODS)
def test_what_an_encoder_and_its_head_learn_fits_the_classes(folders: dict[str, Path], name: str) -> None:
    """Which of two tokens a text holds: with the method's own settings and rate."""
    method = methods.get(name)
    model, _options = attached(folders["bert"], name, head=HEADS["sequence"])
    ids = torch.randint(10, 400, (16, 12), generator=torch.Generator().manual_seed(0))
    classes = torch.arange(16) % 2
    ids[:, 5] = 500 + classes
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=method.LEARNING_RATE[0], weight_decay=0.0)
    model.train()
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits, classes)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
@pytest.mark.parametrize("name", METHODS)
def test_the_loss_on_held_out_rows_falls_with_the_default_settings(
    folders: dict[str, Path], tmp_path: Path, name: str, architecture: str
) -> None:
    folder = folders[architecture]
    method = methods.get(name)
    model, options = attached(folder, name)
    rows, valid = sentences(folder, 96), sentences(folder, 16, start=200)
    before = loss_of(model.eval(), valid)
    settings = Settings(learning_rate=method.LEARNING_RATE[0], max_steps=24, rows_per_step=4, checkpoint_every=1000)
    train(new_run(tmp_path), model, method, options, learner(), rows, settings, Quiet())
    assert loss_of(model, valid) < before - 0.005


def new_run(folder: Path) -> Run:
    return Run.create(folder / "run", from_mapping({"model": "tiny", "data": {"train": "none.jsonl"}}))


RESUMED: tuple[tuple[str, dict[str, Any]], ...] = (
    *((name, {}) for name in METHODS),
    ("loha", {"rank": 2, "rank_dropout": 0.3, "module_dropout": 0.3}),
    ("adalora", {"dropout": 0.2, "targets": ["q_proj", "up_proj"], "delta_t": 2}),
    ("prefix", {"projection": True, "init": "random"}),
    ("p_tuning", {"encoder": "lstm", "encoder_dropout": 0.2}),
)


@pytest.mark.parametrize(
    ("name", "options", "checkpoint"),
    [(name, options, step) for name, options in RESUMED for step in ((2, 4, 6) if name == "adalora" else (4,))],
    ids=lambda v: "-".join(v) or "default" if isinstance(v, dict) else str(v),
)
def test_stopped_and_resumed_is_the_same_to_the_bit(
    tiny_llama: Path, tmp_path: Path, name: str, options: dict[str, Any], checkpoint: int, whole_runs: dict[str, Any]
) -> None:
    """Steps 2, 4 and 6 of 8 lie before, among and after AdaLoRA's cuts."""
    method = methods.get(name)
    rows = random_rows(12)
    settings = Settings(learning_rate=1e-2, max_steps=8, rows_per_step=3, checkpoint_every=2, seed=3)

    def go_on(run: Run) -> tuple[list[Any], dict[str, bytes]]:
        model, chosen = attached(tiny_llama, name, 3, **options)
        train(run, model, method, chosen, learner(), rows, settings, Quiet())
        method.save(model, chosen, run.path / "adapter", "tiny")
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in run.metrics()]
        return lines, {p.name: p.read_bytes() for p in (run.path / "adapter").iterdir()}

    key = f"{name}-{options}"
    if key not in whole_runs:
        run = new_run(tmp_path)
        kept = tmp_path / "kept"
        from tunery.train import checkpoint as checkpoints

        before, checkpoints.KEEP = checkpoints.KEEP, 10
        try:
            outcome = go_on(run)
        finally:
            checkpoints.KEEP = before
        shutil.copytree(run.path, kept)
        whole_runs[key] = (outcome, kept)
    outcome, kept = whole_runs[key]
    cut = tmp_path / "cut"
    shutil.copytree(kept, cut)
    shutil.rmtree(cut / "adapter")
    for step in (2, 4, 6, 8):
        if step > checkpoint:
            shutil.rmtree(cut / "checkpoints" / f"step-{step}")
    torch.manual_seed(99)  # another process has drawn other numbers
    assert go_on(Run(cut)) == outcome
    assert len(outcome[0]) == 8


@pytest.fixture(scope="module")
def whole_runs() -> dict[str, Any]:
    """What was trained without a stop, once for all of its checkpoints."""
    return {}


@pytest.mark.parametrize("name", METHODS)
def test_starting_values_depend_on_the_seed_alone(tiny_llama: Path, name: str) -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(torch.seed() % 1000)
        state = torch.get_rng_state()
        model, _ = attached(tiny_llama, name, seed)
        assert torch.equal(torch.get_rng_state(), state)
        return {n: p.detach() for n, p in [*trainable(model).items(), *model.named_buffers()]}

    first, second, other = start(1), start(1), start(2)
    assert all(torch.equal(first[n], second[n]) for n in first)
    drawn = name not in ("ia3", "oft", "miss", "ln_tuning", "prefix")  # these begin at ones or zeros
    assert any(not torch.equal(first[n], other[n]) for n in first) == drawn


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@pytest.mark.parametrize("name", METHODS)
def test_on_a_bfloat16_base_what_is_learned_is_float32(folders: dict[str, Path], tmp_path: Path, name: str, architecture: str) -> None:
    method = methods.get(name)
    head = HEADS["token"] if architecture == "bert" else None
    model, options = attached(folders[architecture], name, 1, "bfloat16", head)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    scramble(model)
    model.train()
    model(input_ids=IDS).logits.float().square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in trainable(model).values())
    method.save(model, options, tmp_path, "base")
    again, _ = attached(folders[architecture], name, 2, "bfloat16", head)
    method.load(again, tmp_path)
    assert torch.equal(logits(again.eval()), logits(model.eval()))
    precise, _ = attached(folders[architecture], name, 2, "float32", head)
    method.load(precise, tmp_path)
    expected = logits(precise.eval())
    assert (logits(model).float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients_are_pefts(folders: dict[str, Path], tmp_path: Path, name: str, architecture: str) -> None:
    """A step's rows in packs, or one by one where they must be, against PEFT's model with each row and its labels alone."""
    method = methods.get(name)
    folder = folders[architecture]
    model, options = attached(folder, name)
    scramble(model)
    method.save(model, options, tmp_path, "base")
    rows = random_rows(6)
    model.train()
    loss = loss_of(model, rows, gradient=True)
    theirs, total = by_peft(folder, tmp_path), 0.0
    heads = [m for m in theirs.modules() if isinstance(m, torch.nn.Embedding) and m.weight.shape[0] == 20] if name in VIRTUAL else None
    learned = [m.weight for m in heads] if heads else [p for n, p in theirs.named_parameters() if ".default" in n and "ranknum" not in n]
    for p in learned:
        p.requires_grad_(True)
    for row in rows:
        part = peft_loss(theirs, row) / float(rows.supervised.sum())
        part.backward()
        total += part.item()
    assert loss == pytest.approx(total, abs=1e-5)
    if name == "p_tuning":
        return  # PEFT's model for use has the virtual tokens without the network that made them
    mine = sorted((p.grad.flatten() for p in trainable(model).values() if p.grad is not None), key=lambda g: (len(g), float(g.sum())))
    other = sorted((p.grad.flatten() for p in learned if p.grad is not None), key=lambda g: (len(g), float(g.sum())))
    assert len(mine) == len(other) > 0
    torch.testing.assert_close(torch.cat(mine), torch.cat(other), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_continues_only_from_what_fits(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    method = methods.get(name)
    model, options = attached(tiny_llama, name)
    scramble(model)
    method.save(model, options, tmp_path / "adapter", "base")
    method.check_start(tmp_path / "adapter", options)
    started, _ = attached(tiny_llama, name, 5)
    method.load(started, tmp_path / "adapter")
    assert all(torch.equal(p, trainable(model)[n]) for n, p in trainable(started).items())

    with pytest.raises(InputError, match=r"there is no adapter in .*nowhere"):
        method.check_start(tmp_path / "nowhere", options)
    with pytest.raises(InputError, match="there is no adapter here"):
        method.load(started, tmp_path / "nowhere")
    other = methods.get("prompt" if name == "vera" else "vera")
    with pytest.raises(InputError, match=r"of another method \(.*\)"):
        other.check_start(tmp_path / "adapter", other.Options())
    size = next((k for k in ("init_rank", "rank", "block_size", "virtual_tokens") if k in method.Options.model_fields), None)
    if size is not None and name != "lokr":  # on a model as small as this its rank is only a scale
        changed = method.Options.model_validate({size: 10})
        with pytest.raises(InputError, match=rf"{size} \d+ and the recipe 10; set method\.{size} to"):
            method.check_start(tmp_path / "adapter", changed)
        smaller, _ = attached(tiny_llama, name, **{str(size): 10})  # type: ignore[arg-type]
        with pytest.raises(InputError, match="should be"):
            method.load(smaller, tmp_path / "adapter")


def test_an_adapter_with_other_targets_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    lokr = methods.get("lokr")
    wide, options = attached(tiny_llama, "lokr")
    lokr.save(wide, options, tmp_path, "base")
    narrow, _ = attached(tiny_llama, "lokr", targets=["q_proj"])
    with pytest.raises(InputError, match="which this recipe does not train"):
        lokr.load(narrow, tmp_path)


# IA3, layer norms, VeRA, MiSS


def test_ia3_finds_keys_values_and_the_way_out_of_each_architecture(folders: dict[str, Path]) -> None:
    def where(folder: Path, head: Head | None = None) -> dict[str, bool]:
        from peft.tuners.ia3.layer import IA3Layer

        model, _ = attached(folder, "ia3", head=head)
        return {n: m.is_feedforward for n, m in model.named_modules() if isinstance(m, IA3Layer) and ".1." in n}

    llama = {"model.layers.1.self_attn.k_proj": False, "model.layers.1.self_attn.v_proj": False, "model.layers.1.mlp.down_proj": True}
    assert where(folders["llama"]) == llama
    assert where(folders["phi3"]) == {"model.layers.1.self_attn.qkv_proj": False, "model.layers.1.mlp.down_proj": True}
    layer = "bert.encoder.layer.1."
    expected = {f"{layer}attention.self.key": False, f"{layer}attention.self.value": False, f"{layer}output.dense": True}
    assert where(folders["bert"], HEADS["sequence"]) == expected


def test_norm_tuning_takes_every_norm_layer_and_names_them(folders: dict[str, Path]) -> None:
    model, _ = attached(folders["phi3"], "ln_tuning")
    assert len(trainable(model)) == 5
    with pytest.raises(InputError, match=r"no norm layer is called `ln_f` .* it has input_layernorm, norm, post_attention_layernorm"):
        attached(folders["llama"], "ln_tuning", targets=["ln_f"])


def test_the_random_matrices_of_vera_come_from_the_file(tiny_llama: Path, tmp_path: Path) -> None:
    vera = methods.get("vera")
    model, options = attached(tiny_llama, "vera", 1)
    scramble(model)
    vera.save(model, options, tmp_path, "base")
    other, _ = attached(tiny_llama, "vera", 2)
    layers = [m for m in other.modules() if hasattr(m, "vera_A")]
    assert len({id(m.vera_A["default"]) for m in layers}) == 1 < len(layers)
    vera.load(other, tmp_path)
    assert torch.equal(logits(other.eval()), logits(model.eval()))


def test_a_size_that_does_not_fit_the_model_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(InputError, match=r"do not fit this model \(`r` \(128\)"):
        attached(tiny_llama, "miss", rank=128)
    with pytest.raises(InputError, match=r"no linear layer is called `qkv_proj` in this model"):
        attached(tiny_llama, "oft", targets=["qkv_proj"])


# AdaLoRA


def test_adalora_cuts_as_peft_does(tiny_llama: Path) -> None:
    """Twelve steps of ours and of PEFT's own model, with the same rows: the same values to rounding, and the budget is kept."""
    from peft import AdaLoraConfig, get_peft_model

    adalora: Any = methods.get("adalora")
    steps, rows = 12, random_rows(4)
    mine, options = attached(tiny_llama, "adalora", rank=2, init_rank=4, tinit=0.2, tfinal=0.4, targets=["q_proj", "down_proj"])
    config = AdaLoraConfig(
        target_r=2, init_r=4, lora_alpha=32, tinit=2, tfinal=4, deltaT=1, total_step=steps, orth_reg_weight=0.5,
        target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs: Any = get_peft_model(load_model(tiny_llama), config)
    other = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for n, p in trainable(mine).items():
            other["base_model.model." + n].copy_(p)
    ours, peers = (torch.optim.AdamW(ps.values(), lr=5e-3) for ps in (trainable(mine), other))
    whole = float(rows.supervised.sum())
    for step in range(1, steps + 1):
        loss_of(mine, rows, gradient=True)
        adalora.extra_loss(mine, options).backward()
        for row in rows:
            ids = torch.from_numpy(row.tokens.astype(np.int64))[None]
            labels = ids.clone()
            labels[0, row.weights == 0] = -100
            share = float(row.weights[1:].sum()) / whole
            (theirs(input_ids=ids, labels=labels).loss * share).backward()  # PEFT adds its term to each, so their shares add up to one
        ours.step()
        peers.step()
        adalora.after_step(mine, options, step, steps)
        theirs.base_model.update_and_allocate(step)
        ours.zero_grad()
        peers.zero_grad()
        for n, p in trainable(mine).items():
            torch.testing.assert_close(p, other["base_model.model." + n], atol=1e-5, rtol=1e-3)
    kept = [int((p != 0).sum()) for n, p in trainable(mine).items() if "lora_E" in n]
    assert sum(kept) == 2 * len(kept)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_adalora_bears_very_short_runs(tiny_llama: Path, tmp_path: Path, steps: int) -> None:
    model, options = attached(tiny_llama, "adalora")
    settings = Settings(learning_rate=1e-3, max_steps=steps, rows_per_step=2)
    adalora = methods.get("adalora")
    state = train(new_run(tmp_path), model, adalora, options, learner(), random_rows(6), settings, Quiet())
    assert state.step == steps


def test_adalora_refuses_settings_that_leave_nothing_to_cut() -> None:
    adalora = methods.get("adalora")
    with pytest.raises(ValueError, match="init_rank must be greater than rank"):
        adalora.Options.model_validate({"rank": 12})
    with pytest.raises(ValueError, match="lower one"):
        adalora.Options.model_validate({"tinit": 0.5, "tfinal": 0.5})
