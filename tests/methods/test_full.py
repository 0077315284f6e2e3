"""Full tuning, and task heads under every method."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from against_peft import DECAY, RATE, STEPS
from rows import random_rows
from safetensors.torch import load_file, save_file

from tunery.errors import InputError
from tunery.methods import dora, full, lora, qlora, trainable
from tunery.models.load import count_parameters, load_model
from tunery.tasks import get
from tunery.train import attention, learners
from tunery.train.loop import accumulate

IDS = torch.arange(3, 23)[None]
NONE = full.Options()
LABELS = {0: "a", 1: "b", 2: "c"}


def train(model: Any, steps: int = STEPS, autocast: bool = False, other: int = 1) -> list[float]:
    """`other`: 1 for other rows in every step, 0 for the same."""
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=RATE, weight_decay=DECAY)
    losses = []
    for n in range(steps):
        rows = random_rows(4, seed=other * n)
        losses.append(accumulate(model.train(), learners.get(get("chat")), rows, float(rows.supervised.sum()), autocast))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_twenty_steps_equal_plain_transformers(tiny_any: Path) -> None:
    from transformers import AutoModelForCausalLM

    ours = train(full.attach(load_model(tiny_any, attention=attention.register()), NONE, 0))
    model = AutoModelForCausalLM.from_pretrained(tiny_any).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    for n in range(STEPS):
        rows = random_rows(4, seed=n)
        total = torch.zeros(())
        for row in rows:
            ids = torch.from_numpy(row.tokens).long()[None]
            nats = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
            total = total + (nats * torch.from_numpy(row.weights[1:])).sum()
        (total / float(rows.supervised.sum())).backward()
        assert ours[n] == pytest.approx(float(total) / rows.supervised.sum(), abs=1e-5)
        optimizer.step()
        optimizer.zero_grad()


def test_weights_are_float32_once_each_and_learn_in_autocast(tiny_llama: Path, tmp_path: Path) -> None:
    model = full.attach(load_model(tiny_llama, "bfloat16", attention=attention.register()), NONE, 0)
    learned = trainable(model)
    assert {p.dtype for p in learned.values()} == {torch.float32}
    assert sum(p.numel() for p in learned.values()) == count_parameters(model)
    assert "lm_head.weight" not in learned  # tied
    losses = train(model, 6, autocast=True, other=0)
    assert losses[-1] < losses[0] - 0.05
    assert {p.dtype for p in learned.values()} == {torch.float32}
    full.save(model, NONE, tmp_path, "base")
    assert sum(t.numel() for t in load_file(tmp_path / "model.safetensors").values()) == count_parameters(model)


def test_the_folder_loads_in_transformers_and_comes_back_bit_equal(tiny_any: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = full.attach(load_model(tiny_any, attention=attention.register()), NONE, 0)
    train(model, 2)
    full.save(model, NONE, tmp_path, "base")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "generation_config.json") == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    again = full.attach(load_model(tiny_any), NONE, 0)
    full.load(again, tmp_path)
    for name, p in trainable(model).items():
        assert torch.equal(p, trainable(again)[name])
        assert torch.equal(p, theirs.get_parameter(name))
    with torch.no_grad():
        assert (again(input_ids=IDS).logits - load_model(tiny_any)(input_ids=IDS).logits).abs().max() > 1e-3


def test_weights_of_another_shape_or_model_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    model = full.attach(load_model(tiny_llama), NONE, 0)
    with pytest.raises(InputError, match=r"there are no weights here"):
        full.load(model, tmp_path)
    full.save(model, NONE, tmp_path, "base")
    tensors = load_file(tmp_path / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    for changed, message in (
        (tensors, r"model\.norm\.weight should be \(64,\) and is nothing"),
        ({**tensors, "model.norm.weight": norm[:32].clone()}, r"should be \(64,\) and is \(32,\)"),
        ({**tensors, "model.norm.weight": norm, "model.extra": norm.clone()}, r"holds model\.extra, which this model does not have"),
    ):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=message):
            full.load(model, tmp_path)


def encoder(kind: str, tmp_path: Path) -> Path:
    """A folder with a tiny random BERT or Llama under a head of three classes."""
    from tiny import tiny_config, tiny_tokenizer
    from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification, LlamaForSequenceClassification

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 512}
    bert = BertConfig(**small, id2label=LABELS, max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = {
            "bert": lambda: BertForSequenceClassification(bert),
            "tagger": lambda: BertForTokenClassification(bert),
            "llama": lambda: LlamaForSequenceClassification(tiny_config("llama", id2label=LABELS)),
        }[kind]()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def load_classifier(kind: str, folder: Path, dtype: str = "float32") -> Any:
    from tunery.models.heads import Head

    head = Head("token" if kind == "tagger" else "sequence", ("a", "b", "c"))
    return load_model(folder, dtype, head=head)


@pytest.mark.parametrize("kind", ["bert", "tagger", "llama"])
@pytest.mark.parametrize("method", [lora, dora, qlora, full])
def test_a_head_is_trained_whole_saved_and_loads_in_transformers_class(kind: str, method: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    folder = encoder(kind, tmp_path / "base")
    options = method.Options() if method is full else method.Options(rank=4, alpha=8)
    model = method.attach(load_classifier(kind, folder, "bfloat16" if method is not full else "float32"), options, 0)
    head = "score" if kind == "llama" else "classifier"
    learned = trainable(model)
    assert all(p.dtype == torch.float32 for p in learned.values())
    heads = {n for n in learned if n.startswith(head)}
    assert heads == ({f"{head}.weight"} if kind == "llama" else {f"{head}.weight", f"{head}.bias"})
    if method is not full:
        assert len(learned) > len(heads)
        assert all(n.endswith(("lora_A", "lora_B", "lora_magnitude_vector")) for n in set(learned) - heads)
    optimizer = torch.optim.AdamW(learned.values(), lr=1e-2)
    losses = []
    labels = torch.arange(20) % 3 if kind == "tagger" else torch.tensor([1])
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(model(input_ids=IDS).logits.float().reshape(-1, 3), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    method.save(model, options, tmp_path / "out", "base")
    again = method.attach(load_classifier(kind, folder), options, 7)
    method.load(again, tmp_path / "out")
    for name, p in learned.items():
        assert torch.equal(p, trainable(again)[name])
    with torch.no_grad():
        mine = again.eval()(input_ids=IDS).logits
        if method is full:
            theirs = model.__class__.from_pretrained(tmp_path / "out").eval()
        else:
            base = load_classifier(kind, folder)
            base = qlora.dequantised(base, options, "float32") if method is qlora else base
            theirs = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
        torch.testing.assert_close(theirs(input_ids=IDS).logits, mine, atol=1e-5, rtol=1e-5)


def test_no_adapter_is_handed_out_of_full_tuning() -> None:
    (refusal,) = full.REFUSES
    assert refusal.meets({"export": "adapter", "task": "chat"})
    assert not refusal.meets({"export": "merged"})
