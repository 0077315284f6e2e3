"""Which layers are changed for their fused form: those that mean the same, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from tunery.kernels import library
from tunery.kernels.fused import fuse
from tunery.models.load import load_model

built = pytest.mark.skipif(library.library() is None, reason="there is no C compiler here, so nothing is changed")
IDS = torch.arange(3, 40)[None]


@built
@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen3"])
def test_logits_and_gradients_are_the_same(architecture: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / architecture, architecture)
    plain, fused = load_model(folder), fuse(load_model(folder))
    changed = {type(m).__name__ for m, own in zip(fused.modules(), plain.modules(), strict=True) if type(m) is not type(own)}
    assert any("RMSNorm" in name for name in changed)
    assert any("MLP" in name for name in changed)
    found = []
    for model in (plain, fused):
        model.requires_grad_(True)
        with library.without() if model is plain else torch.enable_grad():
            logits = model(input_ids=IDS).logits
            logits.square().mean().backward()
        found.append((logits.detach(), {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-5)
    for name, grad in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], grad, atol=1e-5, rtol=1e-4, msg=name)
    assert set(fused.state_dict()) == set(plain.state_dict())


@built
def test_a_norm_that_means_something_else_stays() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8
    )
    model = Gemma2ForCausalLM(config).eval()
    expected = model(input_ids=IDS).logits
    kinds = {name: type(m) for name, m in model.named_modules() if "Norm" in type(m).__name__ or "MLP" in type(m).__name__}
    fuse(model)
    assert {name: type(model.get_submodule(name)) for name in kinds} == kinds  # its norm adds one to the weight, its gate is a GELU
    torch.testing.assert_close(model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_without_a_compiler_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "library", lambda: None)
    model = load_model(tiny_model(tmp_path / "llama", "llama"))
    kinds = [type(m) for m in model.modules()]
    assert [type(m) for m in fuse(model).modules()] == kinds


def test_a_compiler_that_fails_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("TUNERY_CACHE", str(tmp_path / "cache"))
    library.library.cache_clear()
    try:
        assert library.library() is None
    finally:
        library.library.cache_clear()
