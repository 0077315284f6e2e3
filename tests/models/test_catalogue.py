from __future__ import annotations

from typing import Any

import pytest

from tunery.errors import InputError, MissingModelError
from tunery.models.catalogue import BERT, CATALOGUE, FUSED, PHI_SMALL, SEPARATE, nearest
from tunery.models.source import find

PHI = (
    "phi-3-mini-4k",
    "phi-3-mini-128k",
    "phi-3-small-8k",
    "phi-3-small-128k",
    "phi-3-medium-4k",
    "phi-3-medium-128k",
    "phi-3.5-mini",
    "phi-4",
    "phi-4-mini",
)

# vocabulary, hidden, intermediate, layers, heads, key/value heads, head size, tied: as each published config.json has them
SHAPES: dict[str, tuple[str, tuple[int, int, int, int, int, int, int, bool]]] = {
    "smollm2-135m": ("Llama", (49152, 576, 1536, 30, 9, 3, 64, True)),
    "smollm2-360m": ("Llama", (49152, 960, 2560, 32, 15, 5, 64, True)),
    "smollm2-1.7b": ("Llama", (49152, 2048, 8192, 24, 32, 32, 64, True)),
    "smollm3-3b": ("SmolLM3", (128256, 2048, 11008, 36, 16, 4, 128, True)),
    "phi-3-mini-4k": ("Phi3", (32064, 3072, 8192, 32, 32, 32, 96, False)),
    "phi-3-mini-128k": ("Phi3", (32064, 3072, 8192, 32, 32, 32, 96, False)),
    "phi-3.5-mini": ("Phi3", (32064, 3072, 8192, 32, 32, 32, 96, False)),
    "phi-3-medium-4k": ("Phi3", (32064, 5120, 17920, 40, 40, 10, 128, False)),
    "phi-3-medium-128k": ("Phi3", (32064, 5120, 17920, 40, 40, 10, 128, False)),
    "phi-4": ("Phi3", (100352, 5120, 17920, 40, 40, 10, 128, False)),
    "phi-4-mini": ("Phi3", (200064, 3072, 8192, 32, 24, 8, 128, True)),
    "llama-3.2-1b": ("Llama", (128256, 2048, 8192, 16, 32, 8, 64, True)),
    "llama-3.2-3b": ("Llama", (128256, 3072, 8192, 28, 24, 8, 128, True)),
    "llama-3-8b": ("Llama", (128256, 4096, 14336, 32, 32, 8, 128, False)),
    "llama-3-70b": ("Llama", (128256, 8192, 28672, 80, 64, 8, 128, False)),
    "llama-3.1-8b": ("Llama", (128256, 4096, 14336, 32, 32, 8, 128, False)),
    "qwen2.5-0.5b": ("Qwen2", (151936, 896, 4864, 24, 14, 2, 64, True)),
    "qwen2.5-1.5b": ("Qwen2", (151936, 1536, 8960, 28, 12, 2, 128, True)),
    "qwen2.5-7b": ("Qwen2", (152064, 3584, 18944, 28, 28, 4, 128, False)),
    "qwen3-0.6b": ("Qwen3", (151936, 1024, 3072, 28, 16, 8, 128, True)),
    "qwen3-1.7b": ("Qwen3", (151936, 2048, 6144, 28, 16, 8, 128, True)),
    "qwen3-4b": ("Qwen3", (151936, 2560, 9728, 36, 32, 8, 128, True)),
    "gemma-3-270m": ("Gemma3Text", (262144, 640, 2048, 18, 4, 1, 256, True)),
    "gemma-3-1b": ("Gemma3Text", (262144, 1152, 6912, 26, 4, 1, 256, True)),
    "mistral-7b": ("Mistral", (32768, 4096, 14336, 32, 32, 8, 128, False)),
}


def _on_meta(name: str) -> Any:
    import torch
    import transformers

    family, (vocabulary, hidden, intermediate, layers, heads, kv_heads, head, tied) = SHAPES[name]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_and_targets_are_those_of_the_architecture(name: str) -> None:
    import torch

    model = _on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == CATALOGUE[name].parameters
    linear = {path.split(".")[-1] for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(CATALOGUE[name].targets) == linear - {"lm_head"}


def test_every_entry_is_checked_or_named_here() -> None:
    assert set(CATALOGUE) - set(SHAPES) == {"minilm-l6", "phi-3-small-8k", "phi-3-small-128k"}


def test_the_phi_family_is_there() -> None:
    assert set(PHI) <= set(CATALOGUE)
    for name in PHI:
        entry = CATALOGUE[name]
        assert entry.licence == "MIT"
        assert entry.targets == (PHI_SMALL if "small" in name else FUSED)
        assert entry.hub_id is not None
        assert entry.hub_id.lower().startswith(f"microsoft/{name}")
    contexts = {name: CATALOGUE[name].context_length for name in PHI}
    assert contexts["phi-3-mini-4k"] == contexts["phi-3-medium-4k"] == 4096
    assert contexts["phi-3-mini-128k"] == contexts["phi-3.5-mini"] == contexts["phi-4-mini"] == 131_072
    assert (contexts["phi-3-small-8k"], contexts["phi-4"]) == (8192, 16_384)


def test_entries_are_whole() -> None:
    for name, entry in CATALOGUE.items():
        assert name == entry.name == name.lower()
        assert entry.targets in (SEPARATE, FUSED, PHI_SMALL, BERT)
        assert entry.parameters > 1e6
        assert entry.context_length >= 512
        assert entry.licence
        assert (entry.package is None) == (entry.package_version is None) == (entry.file is None)
        assert 0.5 * entry.parameters < entry.download_bytes < 8 * entry.parameters


@pytest.mark.parametrize("name", ["phi-3-small-8k", "microsoft/Phi-3-small-128k-instruct"])
def test_a_model_that_needs_foreign_code_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"phi3small.*would run code.*phi-3-mini-4k"):
        find(name)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("smolm2-135m", "smollm2-135m"),
        ("phi3-mini-4k", "phi-3-mini-4k"),
        ("Phi-4-mini-instruct", "phi-4-mini"),
        ("SmolLM2_135M", "smollm2-135m"),
    ],
)
def test_nearest(typed: str, meant: str) -> None:
    assert nearest(typed)[0] == meant
    with pytest.raises(MissingModelError, match=f"did you mean {meant}"):
        find(typed)


def test_nothing_near() -> None:
    assert nearest("zzzzqqqq") == []
    with pytest.raises(MissingModelError, match=r"unknown: known names: smollm2-135m"):
        find("zzzzqqqq")
