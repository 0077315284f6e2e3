"""Trained tokens: only their rows of embedding and head learn, as PEFT's `trainable_token_indices`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from against_peft import our_losses, ours, peft_losses, quantised_by_transformers
from safetensors.torch import load_file

from tunery.errors import InputError
from tunery.methods import dora, lora, qlora, trainable
from tunery.methods._tokens import token_ids
from tunery.models.load import load_model, load_tokenizer

TOKENS = [20, 77, 140, 301, 302]


def options(folder: Path) -> lora.Options:
    return lora.Options(rank=4, alpha=8, train_tokens=tuple(load_tokenizer(folder).convert_ids_to_tokens(TOKENS)))


@pytest.fixture
def added(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny Llama with two tokens added to its tokenizer; its embedding has spare rows for them."""
    shutil.copytree(tiny_llama, folder := tmp_path / "added")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.add_tokens(["<tool>", "<answer>"]) == 2
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", [lora, dora, qlora])
def test_twenty_steps_equal_pefts_with_tied_and_untied_heads(tiny_any: Path, method: Any) -> None:
    from peft import LoraConfig, get_peft_model

    base: Any = quantised_by_transformers(tiny_any) if method is qlora else load_model(tiny_any)
    indices: Any = TOKENS if base.config.tie_word_embeddings else {"model.embed_tokens": TOKENS, "lm_head": TOKENS}
    config = LoraConfig(
        r=4, lora_alpha=8, use_dora=method is dora, target_modules="all-linear", trainable_token_indices=indices, task_type="CAUSAL_LM"
    )
    chosen = method.Options(**options(tiny_any).model_dump(exclude={"start"}))
    theirs = peft_losses(get_peft_model(base, config), ours(tiny_any, method, chosen))
    assert our_losses(ours(tiny_any, method, chosen), method, chosen) == pytest.approx(theirs, abs=1e-5)
    without = method.Options(rank=4, alpha=8)
    assert our_losses(ours(tiny_any, method, without), method, without) != pytest.approx(theirs, abs=2e-5)


@pytest.mark.parametrize("method", [lora, qlora])
def test_only_their_rows_are_saved_and_peft_loads_and_merges_them(tiny_any: Path, tmp_path: Path, method: Any) -> None:
    from peft import PeftModel

    from tunery.models.load import count_parameters

    chosen = method.Options(**options(tiny_any).model_dump(exclude={"start"}))
    model = ours(tiny_any, method, chosen)
    our_losses(model, method, chosen)
    method.save(model, chosen, tmp_path, "base")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    rows = {n: t for n, t in tensors.items() if "lora" not in n}
    tied = model.config.tie_word_embeddings
    assert sorted(rows) == [
        *([] if tied else ["base_model.model.lm_head.token_adapter.trainable_tokens_delta"]),
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
    ]
    assert all(t.shape == (5, 64) and t.dtype == torch.float32 for t in rows.values())
    assert count_parameters(model) == sum(p.numel() for p in model.parameters())
    ids = torch.tensor([[5, 20, 9, 140, 302, 11]])
    base = load_model(tiny_any) if method is lora else qlora.dequantised(load_model(tiny_any), chosen, "float32")
    with torch.no_grad():
        mine = model.eval()(input_ids=ids).logits
        wrapped: Any = PeftModel.from_pretrained(base, str(tmp_path)).eval()
        torch.testing.assert_close(wrapped(input_ids=ids).logits, mine, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(wrapped.merge_and_unload()(input_ids=ids).logits, mine, atol=2e-5, rtol=1e-5)
    again = ours(tiny_any, method, chosen)
    method.load(again, tmp_path)
    for name, p in trainable(model).items():
        assert torch.equal(p, trainable(again)[name])


def test_added_tokens_are_found_in_the_tokenizer(added: Path, tmp_path: Path) -> None:
    chosen = lora.Options(rank=4, train_tokens="added")
    model = ours(added, lora, chosen)
    assert {n: tuple(p.shape) for n, p in trainable(model).items() if "lora" not in n} == {"model.embed_tokens.rows": (2, 64)}
    lora.save(model, chosen, tmp_path / "adapter", "base")
    first = load_tokenizer(added).convert_tokens_to_ids("<tool>")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["trainable_token_indices"] == [first, first + 1]
    before = load_model(added)
    ids = torch.tensor([[5, first, 9]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, before(input_ids=ids).logits)
        model.model.embed_tokens.rows[0] += 1.0
        changed = (model(input_ids=ids).logits - before(input_ids=ids).logits).abs()
    assert (changed[0, 0] > 1e-6).nonzero().flatten().tolist() == [first]  # before it is read, only its own logit changes
    assert changed[0, 1].max() > 0.01


def test_in_bf16_the_rows_are_float32_and_what_they_give_is_not(added: Path) -> None:
    model = ours(added, lora, lora.Options(rank=4, train_tokens=("<tool>",)), "bfloat16")
    out = model(input_ids=torch.tensor([[5, 440, 9]]))
    assert out.logits.dtype == torch.bfloat16
    assert model.model.embed_tokens.rows.dtype == torch.float32
    out.logits.float().sum().backward()
    assert model.model.embed_tokens.rows.grad.abs().max() > 0


def test_a_token_that_the_base_does_not_have_is_refused_with_the_mend(tiny_llama: Path, added: Path) -> None:
    model = load_model(tiny_llama)
    with pytest.raises(InputError, match=r"`<tool>` is not one token of the tokenizer.*add_tokens.*name that as the model"):
        token_ids(model, ("yes", "<tool>"), 512)
    assert token_ids(model, ("yes", " river"), 512) == sorted(load_tokenizer(tiny_llama).convert_tokens_to_ids(["yes", "Ġriver"]))
    with pytest.raises(InputError, match=r"no token was added to the tokenizer"):
        token_ids(model, "added", 512)
    with pytest.raises(InputError, match=r"`<answer>` has no row in the model's embedding, which has 441; call model\.resize"):
        token_ids(load_model(added), "added", 441)
