"""Trained models to export: small random ones, and the real one, each with a random adapter that matters."""

from __future__ import annotations

from pathlib import Path

import pytest
from exports import random_adapter, source_of

from tunery.export.source import ExportSource


@pytest.fixture(scope="session")
def llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    return source_of(tiny_llama, random_adapter(tiny_llama, tmp_path_factory.mktemp("adapter"), std=0.2))


@pytest.fixture(scope="session")
def phi3(tiny_phi3: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    return source_of(tiny_phi3, random_adapter(tiny_phi3, tmp_path_factory.mktemp("adapter"), std=0.2))


@pytest.fixture(scope="session")
def qwen(tiny_qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    return source_of(tiny_qwen, random_adapter(tiny_qwen, tmp_path_factory.mktemp("adapter"), std=0.2))


@pytest.fixture(params=["llama", "phi3", "qwen"])
def trained(request: pytest.FixtureRequest) -> ExportSource:
    """Each of the small trained models in turn; the proof's reference is computed once for each."""
    source: ExportSource = request.getfixturevalue(request.param)
    return source


@pytest.fixture(scope="session")
def real(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    return source_of(smollm2, random_adapter(smollm2, tmp_path_factory.mktemp("adapter"), std=0.02))
