"""Planning for a model of the hub that is not downloaded, against a hub on this machine; the real client in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from download_hub import DownloadHub
from jobs import write_job

from tunery.errors import MissingModelError
from tunery.models.catalogue import CATALOGUE
from tunery.models.remote import Remote
from tunery.plan.absent import Absent, find_absent
from tunery.recipe import from_mapping

WEIGHTS = "model.safetensors"


@pytest.fixture
def tiny_hub(tiny_llama: Path) -> Iterator[DownloadHub]:
    server = DownloadHub({f.name: f.read_bytes() for f in tiny_llama.iterdir()})
    yield server
    server.shutdown()
    server.server_close()


def plan(recipe: Path, home: Path, endpoint: str, cache: Path) -> tuple[int, Any, str]:
    """`tunery plan RECIPE --on l4 --json`: its exit code, the object, what people read."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_OFFLINE")) and "proxy" not in k.lower()
    }
    own = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TUNERY_CACHE": str(cache),
    }
    code = "from tunery.cli.main import run; run()"
    result = subprocess.run(
        [sys.executable, "-c", code, "plan", str(recipe), "--on", "l4", "--json"],
        env={**kept, **own},
        capture_output=True,
        text=True,
        timeout=200,
    )
    return result.returncode, json.loads(result.stdout), result.stderr


def test_a_plan_from_headers_alone_is_that_of_the_downloaded_model(tiny_hub: DownloadHub, tiny_llama: Path, tmp_path: Path) -> None:
    absent = write_job(tmp_path, tiny_llama, model="org/tiny")
    code, planned, said = plan(absent, tmp_path / "home", tiny_hub.address, tmp_path / "cache")
    assert code == 0, said
    assert "asking the hub for the shapes of org/tiny" in said

    size = (tiny_llama / WEIGHTS).stat().st_size
    assert planned["hub"]["file_bytes"] == size
    assert sum(planned["hub"]["file_values"].values()) == planned["hub"]["counted_parameters"] > 0
    assert planned["tokenizer"] is None, "its own tokenizer measured the rows"
    given = [n for name, n in tiny_hub.sent if name == WEIGHTS]
    assert len(given) == 1
    assert 0 < given[0] <= 100_001 < size
    assert not list((tmp_path / "home").rglob("*.safetensors"))

    (tmp_path / "here").mkdir()
    code, here, said = plan(write_job(tmp_path / "here", tiny_llama), tmp_path / "home", tiny_hub.address, tmp_path / "cache")
    assert code == 0, said
    assert here["hub"] is None
    assert planned["candidates"] == here["candidates"]

    asked = len(tiny_hub.asked)
    code, again, said = plan(absent, tmp_path / "home", tiny_hub.address, tmp_path / "cache")
    assert (code, again) == (0, planned), "config.json in the cache does not make it a downloaded model"
    assert len(tiny_hub.asked) > asked


def test_a_hub_that_cannot_be_reached_is_one_sentence(tiny_llama: Path, tmp_path: Path) -> None:
    code, found, said = plan(write_job(tmp_path, tiny_llama, model="org/tiny"), tmp_path / "home", "http://127.0.0.1:9", tmp_path / "cache")
    assert code == 2
    assert found["error"].startswith("the model org/tiny is not on this machine and the hub could not be reached (ConnectError")
    assert said.splitlines()[-1] == found["error"]
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_repository_without_what_is_needed(tiny_hub: DownloadHub, tiny_llama: Path, tmp_path: Path, name: str) -> None:
    del tiny_hub.files[name]
    code, found, _ = plan(write_job(tmp_path, tiny_llama, model="org/tiny"), tmp_path / "home", tiny_hub.address, tmp_path / "cache")
    assert code == 2
    assert found["error"].startswith(
        f"the model org/tiny has no {'config.json' if name == 'config.json' else 'safetensors weights'} on the hub"
    )


@pytest.mark.real
def test_without_its_tokenizer_another_measures_the_rows(tiny_hub: DownloadHub, tiny_llama: Path, smollm2: Path, tmp_path: Path) -> None:
    for name in [n for n in tiny_hub.files if n not in ("config.json", WEIGHTS)]:
        del tiny_hub.files[name]
    code, planned, said = plan(write_job(tmp_path, tiny_llama, model="org/tiny"), tmp_path / "home", tiny_hub.address, tmp_path / "cache")
    assert code == 0, said
    assert planned["tokenizer"] == "smollm2-135m"


def absent(values: dict[str, int], counted: int, tokenizer: str | None = None) -> Absent:
    recipe = from_mapping({"model": "org/tiny", "data": {"train": "train.jsonl"}})
    found = Remote("org/tiny", Path("folder"), tokenizer is None, values, 8)
    return Absent(recipe, None, "decoder", found.folder, found.folder, tokenizer, found, counted)


def test_values_that_the_shapes_do_not_count_are_said() -> None:
    own, other = absent({"BF16": 9_000, "F32": 1_000}, 10_000).sentences(), absent({"BF16": 12_000}, 10_000, "smollm2-135m").sentences()
    assert own[1] == "Its weight files hold 10,000 values (9,000 in BF16, 1,000 in F32), as its shapes count (10,000)."
    assert "rows are its own tokenizer's" in own[0]
    assert "12,000 values (12,000 in BF16), but its shapes count 10,000 parameters (+20.0%)" in other[1]
    assert "smollm2-135m's tokenizer" in other[0]
    known = replace(absent({}, 1, "smollm2-135m"), remote=None, counted=None)
    assert known.sentences() == [
        "The model is not on this machine: its shapes are known, and rows are as long as smollm2-135m's tokenizer makes them."
    ]
    assert known.as_json() is None


@pytest.mark.real
@pytest.mark.parametrize("name", ["phi-3-small-8k", "phi-4", "microsoft/phi-4"])
def test_known_shapes_need_no_hub(name: str, smollm2: Path) -> None:
    """The tests run with the hub switched off. Phi-3-small cannot be loaded here, but planned."""
    found = find_absent(from_mapping({"model": name, "data": {"train": "train.jsonl"}}))
    assert found is not None
    entry = CATALOGUE[name.removeprefix("microsoft/")]
    assert found.config.max_position_embeddings == entry.context_length
    assert (found.remote, found.tokenizer_name, found.kind) == (None, "smollm2-135m", "decoder")


def test_what_is_here_is_not_absent(tiny_llama: Path) -> None:
    assert find_absent(from_mapping({"model": str(tiny_llama), "data": {"train": "train.jsonl"}})) is None


def test_a_catalogue_model_of_unknown_shapes_asks_the_hub() -> None:
    with pytest.raises(
        MissingModelError, match=r"Qwen/Qwen3-4B .* is not on this machine and the hub could not be reached \(HF_HUB_OFFLINE"
    ):
        find_absent(from_mapping({"model": "qwen3-4b", "data": {"train": "train.jsonl"}}))
