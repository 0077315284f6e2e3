"""A run that is tracked, and somewhere to track it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked import Said, Server

from tunery.recipe import Recipe, from_mapping
from tunery.run import Run


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def recipe() -> Recipe:
    return from_mapping({"model": "smollm2-135m", "data": {"train": "a.jsonl"}, "method": {"name": "lora", "rank": 8}})


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> Run:
    return Run.create(tmp_path / "headlines", recipe)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for needed in ("mlflow", "flask", "flask_cors", "sqlalchemy", "alembic", "aiohttp"):
        pytest.importorskip(needed, reason=f"MLflow's server needs {needed}; pip install 'tunery[dev]'")
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()
