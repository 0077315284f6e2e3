"""The step's arithmetic: packing, sharing and accumulation change nothing, and LoRA is PEFT's LoRA."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from against_peft import assert_same_losses
from rows import TokenRows, random_rows

from tunery.methods import lora, trainable
from tunery.models.load import load_model
from tunery.tasks import get
from tunery.train import attention, forward, learners
from tunery.train.loop import accumulate
from tunery.train.packs import pack

OPTIONS = lora.Options(rank=4, alpha=8, targets="all-linear")


def adapted(folder: Path, dtype: str = "float32", options: lora.Options = OPTIONS) -> Any:
    """A model with adapters whose B is not zero, so that every part of them gets a gradient."""
    model = load_model(folder, dtype, attention=attention.register())
    lora.attach(model, options, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in trainable(model).items():
            if name.endswith("lora_B"):
                p.normal_(0, 0.05, generator=generator)
    return model.train()


def gradients(model: Any, rows: TokenRows, groups: list[list[int]], share: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of one optimiser step whose rows are handed over in groups."""
    supervised = float(rows.supervised.sum())
    losses = [accumulate(model, learners.get(get("chat"), None, share), [rows[i] for i in g], supervised) for g in groups]
    found = {n: p.grad.clone() for n, p in trainable(model).items()}
    model.zero_grad()
    return sum(losses), found


def assert_same(first: tuple[float, dict[str, torch.Tensor]], second: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert first[0] == pytest.approx(second[0], abs=1e-5)
    for name, gradient in first[1].items():
        torch.testing.assert_close(gradient, second[1][name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_packed_and_shared_equal_row_by_row(tiny_any: Path) -> None:
    rows = random_rows(8)
    model = adapted(tiny_any)
    alone = gradients(model, rows, [[n] for n in range(8)], share=False)
    assert max(g.abs().max() for g in alone[1].values()) > 1e-3
    assert_same(gradients(model, rows, [list(range(8))], share=False), alone)
    assert_same(gradients(model, rows, [list(range(8))], share=True), alone)
    assert_same(gradients(model, rows, [[0, 1, 2, 3], [4, 5, 6, 7]], share=True), alone)


def test_the_plain_model_agrees_without_our_attention(tiny_any: Path) -> None:
    """Against transformers alone: one row at a time, its own mask, its own loss."""
    rows = random_rows(6)
    model = adapted(tiny_any)
    ours, _ = gradients(model, rows, [list(range(6))], share=True)
    model.set_attn_implementation("eager")
    total = 0.0
    for row in rows:
        ids = torch.from_numpy(row.tokens.astype(np.int64))[None]
        logits = model(input_ids=ids).logits[0, :-1]
        nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        total += float((nats * torch.from_numpy(row.weights[1:])).sum())
    assert ours == pytest.approx(total / rows.supervised.sum(), abs=1e-5)


def test_a_sliding_window_counts_positions_in_the_row(tmp_path: Path) -> None:
    from tiny import tiny_config, tiny_tokenizer
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder = tmp_path / "windowed"
    AutoModelForCausalLM.from_config(tiny_config("phi3", sliding_window=5)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    rows = random_rows(8)
    windowed = adapted(folder)
    alone = gradients(windowed, rows, [[n] for n in range(8)], share=False)
    assert_same(gradients(windowed, rows, [list(range(8))], share=True), alone)
    windowed.set_attn_implementation("eager")
    ids = torch.from_numpy(rows[0].tokens.astype(np.int64))[None]
    plain = windowed(input_ids=ids).logits[0]
    windowed.set_attn_implementation(attention.NAME)
    (packed,) = pack([rows[0], rows[3]], 1000)
    torch.testing.assert_close(forward.logits_of(windowed, packed)[packed.rows == 0], plain[packed_sources(rows)], atol=1e-5, rtol=1e-5)


def packed_sources(rows: TokenRows) -> np.ndarray:
    return np.flatnonzero(rows[0].weights[1:])


def test_a_layer_that_does_not_attend_is_never_packed(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    rows = random_rows(3)
    assert len(list(forward.packs_for(model, rows))) == 1
    model.config.layer_types = ["full_attention", "linear_attention"]
    packs = list(forward.packs_for(model, rows))
    assert [set(p.rows.tolist()) for p in packs] == [{0}, {1}, {2}]


def batches(steps: int) -> Iterator[TokenRows]:
    for n in range(steps):
        yield random_rows(4, seed=n)


def train_ours(folder: Path, dtype: str, steps: int = 20) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = load_model(folder, dtype, attention=attention.register())
    lora.attach(model, OPTIONS, seed=0)
    model.train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2, weight_decay=0.01)
    losses = []
    for rows in batches(steps):
        losses.append(accumulate(model, learners.get(get("chat")), rows, float(rows.supervised.sum())))
        optimizer.step()
        optimizer.zero_grad()
    return losses, {n: p.detach().clone() for n, p in trainable(model).items()}


def train_peft(folder: Path, dtype: str, steps: int = 20) -> tuple[list[float], dict[str, torch.Tensor]]:
    from peft import LoraConfig, get_peft_model

    model: Any = load_model(folder, dtype)
    wrapped = get_peft_model(
        model, LoraConfig(r=OPTIONS.rank, lora_alpha=OPTIONS.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    start = load_model(folder, dtype)
    lora.attach(start, OPTIONS, seed=0)
    theirs = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    mine = trainable(start)
    names = {n.removeprefix("base_model.model.").replace(".default.weight", ""): n for n in theirs}
    assert set(names) == set(mine)
    with torch.no_grad():
        for n, p in mine.items():
            theirs[names[n]].copy_(p)
    optimizer = torch.optim.AdamW([theirs[names[n]] for n in mine], lr=1e-2, weight_decay=0.01)
    wrapped.train()
    losses = []
    for rows in batches(steps):
        total = torch.zeros(())
        for row in rows:
            ids = torch.from_numpy(row.tokens.astype(np.int64))[None]
            nats = torch.nn.functional.cross_entropy(wrapped(input_ids=ids).logits[0, :-1].float(), ids[0, 1:], reduction="none")
            total = total + (nats * torch.from_numpy(row.weights[1:])).sum()
        loss = total / float(rows.supervised.sum())
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, {n: theirs[names[n]].detach().clone() for n in mine}


def test_twenty_steps_equal_pefts(tiny_llama: Path, tiny_phi3: Path, tiny_qwen: Path) -> None:
    def runs(folder: Path) -> tuple[list[float], list[float], list[float], list[float]]:
        found = [train(folder, dtype)[0] for dtype in ("float32", "bfloat16") for train in (train_ours, train_peft)]
        return found[0], found[1], found[2], found[3]

    assert_same_losses(map(runs, (tiny_llama, tiny_phi3, tiny_qwen)))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("gemma2", {"final_logit_softcapping": 2.0}), ("granite", {"logits_scaling": 4.0}), ("cohere", {"logit_scale": 0.25})],
)
def test_what_an_architecture_does_to_its_logits_is_kept(tmp_path: Path, kind: str, settings: dict[str, float]) -> None:
    """Soft cap, divisor and factor: against transformers' own logits, one row at a time."""
    from tiny import tiny_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    common = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, **common, num_key_value_heads=2, head_dim=16, **settings, initializer_range=0.3, sliding_window=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    rows = random_rows(6)
    model = load_model(tmp_path, attention=attention.register())
    ours = accumulate_loss(model, rows)
    model.set_attn_implementation("eager")
    total = 0.0
    for row in rows:
        ids = torch.from_numpy(row.tokens.astype(np.int64))[None]
        nats = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        total += float((nats * torch.from_numpy(row.weights[1:])).sum())
    assert ours == pytest.approx(total / rows.supervised.sum(), abs=1e-5)


def accumulate_loss(model: Any, rows: TokenRows) -> float:
    nats = [forward.pack_loss(model, get("chat"), p)[0].item() for p in forward.packs_for(model, rows)]
    return sum(nats) / float(rows.supervised.sum())


def test_logits_in_chunks_give_the_same_gradient(tiny_any: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(8)
    model = adapted(tiny_any)
    whole = gradients(model, rows, [list(range(8))], share=True)
    monkeypatch.setattr(forward, "LOGITS", 3)
    assert_same(gradients(model, rows, [list(range(8))], share=True), whole)
