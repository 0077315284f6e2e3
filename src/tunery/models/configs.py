"""The shapes of known models, from their published config.json: enough to plan a training of a model that is not downloaded."""

from __future__ import annotations

from typing import Any

from tunery.errors import InputError
from tunery.models.catalogue import CATALOGUE

_PHI_3_MINI = ("phi3", 3072, 8192, 32, 32, 32, 32064, False)
_PHI_3_SMALL = ("llama", 4096, 14336, 32, 32, 8, 100352, True)
"""Its blocks have the shapes of Llama's; that its attention is blocked in every second layer is not counted."""
_PHI_3_MEDIUM = ("phi3", 5120, 17920, 40, 40, 10, 32064, False)

_SHAPES: dict[str, tuple[str, int, int, int, int, int, int, bool]] = {
    "phi-3-mini-4k": _PHI_3_MINI,
    "phi-3-mini-128k": _PHI_3_MINI,
    "phi-3.5-mini": _PHI_3_MINI,
    "phi-3-small-8k": _PHI_3_SMALL,
    "phi-3-small-128k": _PHI_3_SMALL,
    "phi-3-medium-4k": _PHI_3_MEDIUM,
    "phi-3-medium-128k": _PHI_3_MEDIUM,
    "phi-4": ("phi3", 5120, 17920, 40, 40, 10, 100352, False),
    "smollm2-135m": ("llama", 576, 1536, 30, 9, 3, 49152, True),
    "smollm2-360m": ("llama", 960, 2560, 32, 15, 5, 49152, True),
    "smollm2-1.7b": ("llama", 2048, 8192, 24, 32, 32, 49152, True),
    "llama-3.2-1b": ("llama", 2048, 8192, 16, 32, 8, 128256, True),
    "llama-3-8b": ("llama", 4096, 14336, 32, 32, 8, 128256, False),
    "llama-3.1-8b": ("llama", 4096, 14336, 32, 32, 8, 128256, False),
    "llama-3-70b": ("llama", 8192, 28672, 80, 64, 8, 128256, False),
    "mistral-7b": ("llama", 4096, 14336, 32, 32, 8, 32768, False),
}
"""(family, hidden, intermediate, layers, heads, key-value heads, vocabulary, tied embeddings)."""


def is_known(name: str) -> bool:
    """Whether the shapes of a model of this name are known here."""
    return name.lower() in _SHAPES


def known_config(name: str) -> Any:
    """The transformers config of a catalogue model. Raises InputError for one whose shapes are not known here."""
    from transformers import LlamaConfig, Phi3Config

    shape = _SHAPES.get(name.lower())
    if shape is None:
        raise InputError(
            f"the model {name} is not on this machine and its shapes are not known; download it, or plan for {', '.join(_SHAPES)}"
        )
    family, hidden, intermediate, layers, heads, key_values, vocabulary, tied = shape
    kinds: dict[str, Any] = {"llama": LlamaConfig, "phi3": Phi3Config}
    return kinds[family](
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=CATALOGUE[name.lower()].context_length,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
