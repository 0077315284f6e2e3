"""What tests of PEFT's methods share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model


@pytest.fixture(scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tiny_llama: Path, tiny_phi3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    bert = tiny_model(tmp_path_factory.mktemp("models") / "tiny-bert", "bert", max_position_embeddings=64)
    return {"llama": tiny_llama, "phi3": tiny_phi3, "bert": bert}
