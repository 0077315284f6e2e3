"""Prompt, prefix and P-tuning: what is answered, padded and refused where virtual tokens stand before the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft_methods import HEADS, IDS, VIRTUAL, attached, by_peft, logits, scramble

from tunery import methods
from tunery.errors import InputError
from tunery.infer.sampling import Sampling
from tunery.infer.torch_engine import TorchEngine
from tunery.methods import trainable
from tunery.models.load import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
@pytest.mark.parametrize("name", VIRTUAL)
def test_answers_are_those_of_peft(folders: dict[str, Path], tmp_path: Path, name: str, architecture: str) -> None:
    """Prompts of different lengths are padded on the left and answered together, PEFT's one by one; the stream and the logits agree."""
    folder, method = folders[architecture], methods.get(name)
    model, options = attached(folder, name)
    scramble(model)
    method.save(model, options, tmp_path, "base")
    theirs = by_peft(folder, tmp_path)
    engine = TorchEngine(model, load_tokenizer(folder), stop_ids=())
    prompts = [[5, 6, 7], list(range(20, 50)), [9], list(range(100, 111))]
    expected = [
        theirs.generate(
            input_ids=torch.tensor([p]), attention_mask=torch.ones(1, len(p), dtype=torch.long), max_new_tokens=12, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )[0, len(p) :].tolist()
        for p in prompts
    ]  # fmt: skip
    answers = engine.generate(prompts, Sampling(max_new_tokens=12))
    assert answers == expected
    assert [list(engine.stream(p, Sampling(max_new_tokens=12))) for p in prompts] == expected
    found = engine.logits(prompts[1] + expected[1])
    np.testing.assert_allclose(found, logits(theirs, torch.tensor([prompts[1] + expected[1]]))[0].numpy(), atol=1e-5, rtol=1e-5)
    model.train()
    assert engine.context == 1024 - options.virtual_tokens


@pytest.mark.parametrize("name", VIRTUAL)
def test_rows_with_padding_are_what_they_are_alone(folders: dict[str, Path], name: str) -> None:
    """A decoder's class is read at its last token that is no padding, an encoder's behind its mask."""
    for architecture in ("llama", "bert"):
        model, _ = attached(folders[architecture], name, head=HEADS["sequence"])
        scramble(model)
        model.eval()
        pad = int(model.config.pad_token_id)
        short = IDS[:, :8]
        both = torch.cat([IDS, torch.nn.functional.pad(short, (0, 12), value=pad)])
        mask = torch.ones_like(both)
        mask[1, 8:] = 0
        with torch.no_grad():
            together = model(input_ids=both, attention_mask=mask).logits
        torch.testing.assert_close(together, torch.cat([logits(model, IDS), logits(model, short)]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VIRTUAL)
def test_virtual_tokens_count_into_the_context(folders: dict[str, Path], name: str) -> None:
    method: Any = methods.get(name)
    model, options = attached(folders["bert"], name, head=HEADS["token"])  # context 64
    assert method.virtual_tokens(options) == 20
    model(input_ids=torch.ones(1, 44, dtype=torch.long))
    with pytest.raises(InputError, match=r"45 tokens and 20 virtual tokens .* context of 64; set train\.max_length to 44 or less"):
        model(input_ids=torch.ones(1, 45, dtype=torch.long))


@pytest.mark.parametrize("name", VIRTUAL)
def test_virtual_tokens_cannot_be_merged_and_say_so(name: str) -> None:
    method: Any = methods.get(name)
    assert not method.MERGES
    assert not method.PACKS
    for export in ("merged", "onnx", "gguf"):
        refusal = next(r for r in method.REFUSES if r.meets({"export": export}))
        assert "nothing to merge" in refusal.reason
        assert refusal.instead == "export: [adapter]"


def test_a_prefix_does_not_vanish_under_gradient_checkpointing(tiny_llama: Path) -> None:
    model, _ = attached(tiny_llama, "prefix")
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(InputError, match=r"set train\.gradient_checkpointing to false"):
        model(input_ids=IDS)


@pytest.mark.parametrize("name", ["prompt", "p_tuning"])
def test_gradient_checkpointing_changes_no_gradient(tiny_llama: Path, name: str) -> None:
    def gradients(again: bool) -> list[torch.Tensor]:
        model, _ = attached(tiny_llama, name)
        model.train()
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        model(input_ids=IDS).logits.square().sum().backward()
        return [p.grad for p in trainable(model).values() if p.grad is not None]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("name", "options"), [("p_tuning", {}), ("prefix", {"projection": True})])
def test_virtual_tokens_without_their_network_can_be_used_but_not_trained(
    tiny_llama: Path, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    """As an adapter is that PEFT saved."""
    method = methods.get(name)
    model, chosen = attached(tiny_llama, name, **options)
    scramble(model)
    method.save(model, chosen, tmp_path, "base")
    (tmp_path / "prompt_encoder.safetensors").unlink()
    with pytest.raises(InputError, match="without the encoder that made them"):
        method.check_start(tmp_path, chosen)
    loaded, _ = attached(tiny_llama, name, 9, **options)
    method.load(loaded, tmp_path)
    torch.testing.assert_close(logits(loaded.eval()), logits(model.eval()), atol=1e-5, rtol=1e-5)
    assert not trainable(loaded)
