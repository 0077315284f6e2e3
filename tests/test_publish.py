"""What leaves a run: cards beside its models, its adapter on the hub. By the command line, since the hub's client reads its settings once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN, PushHub
from jobs import write_job

from tunery import publish
from tunery.progress import Quiet
from tunery.recipe import from_mapping


@pytest.fixture
def hub() -> Iterator[PushHub]:
    server = PushHub()
    yield server
    server.shutdown()
    server.server_close()


def _tunery(hub: PushHub, home: Path, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": token}
    return subprocess.run(
        [sys.executable, "-c", "import sys; from tunery.cli.main import run; sys.exit(run())", *arguments],
        env={**kept, **settings, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_job_that_ends_on_the_hub(hub: PushHub, tiny_llama: Path, tmp_path: Path) -> None:
    recipe = write_job(
        tmp_path,
        tiny_llama,
        export=["adapter", {"hub": "org/mine"}],
        train={"epochs": 1},
        evaluate={"forgetting_tokens": 0, "limit": 8},
    )
    done = _tunery(hub, tmp_path, "train", str(recipe), "--run", "run", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["hub"] == {"form": "adapter", "repo": "org/mine", "url": f"{hub.address}/org/mine", "commit": "abc123", "private": True}
    pushed = hub.repos["org/mine"]["files"]
    assert hub.repos["org/mine"]["private"] is True
    assert hub.repos["org/mine"]["messages"] == ["Fine-tuned with lora by Tunery 0.1.0"]
    here = {f.name: f.read_bytes() for f in (tmp_path / "run" / "adapter").iterdir() if f.name != "proof.json"}
    assert set(pushed) == set(here)
    assert pushed["adapter_model.safetensors"] == here["adapter_model.safetensors"]
    assert 'from_pretrained(base, "org/mine")' in pushed["README.md"].decode()
    assert b'from_pretrained(base, ".")' in here["README.md"]
    assert 'from_pretrained(base, "adapter")' in (tmp_path / "run" / "README.md").read_text()
    for text in (done.stdout, done.stderr, *(f.read_text() for f in (tmp_path / "run").glob("*.*") if f.is_file())):
        assert TOKEN not in text
    asked = len(hub.asked)
    again = _tunery(hub, tmp_path, "resume", "run")
    assert again.returncode == 0, again.stderr[-2000:]
    assert not [a for a in hub.asked[asked:] if "commit" in a], "a finished run is pushed once"

    other = _tunery(hub, tmp_path, "export", "run", "--to", "hub:org/other", "--json")
    assert other.returncode == 0, other.stderr[-2000:]
    assert json.loads(other.stdout)["repo"] == "org/other"
    assert set(hub.repos["org/other"]["files"]) == set(pushed)

    publish.export_one(str(tmp_path / "run"), "merged", tmp_path / "elsewhere", Quiet())
    card = (tmp_path / "elsewhere" / "README.md").read_text()
    assert "| merged | fp32 | 1.0000 |" in card
    assert 'from_pretrained(".")' in card


def test_a_wrong_token_is_said_before_anything_is_trained(hub: PushHub, tiny_llama: Path, tmp_path: Path) -> None:
    recipe = write_job(tmp_path, tiny_llama, export={"hub": "org/mine"})
    done = _tunery(hub, tmp_path, "train", str(recipe), "--run", "run", token="hf_somebody_elses")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("export.hub: the hub does not know this HF_TOKEN; set it to a token that may write")
    assert not (tmp_path / "run").exists()
    missing = _tunery(hub, tmp_path, "export", str(tiny_llama), "--to", "hub:org/mine")
    assert missing.returncode == 2
    assert "name a run directory" in missing.stderr
    assert _tunery(hub, tmp_path, "export", str(tiny_llama), "--to", "merged").returncode == 2


@pytest.mark.parametrize(
    ("written", "forms", "options"),
    [
        ({"hub": "org/mine"}, ["adapter"], {"repo": "org/mine"}),
        (["merged", {"hub": "org/mine"}], ["merged"], {"repo": "org/mine"}),
        ([{"hub": {"repo": "a/b", "private": False}}, "onnx"], ["onnx"], {"repo": "a/b", "private": False}),
        ([{"name": "hub", "repo": "a/b"}, {"onnx": "int4"}], ["onnx"], {"repo": "a/b"}),
    ],
)
def test_the_hub_is_a_place_among_the_forms(written: object, forms: list[str], options: dict[str, object]) -> None:
    recipe = from_mapping({"model": "m", "data": {"train": "a"}, "export": written})
    assert [e.name for e in recipe.export] == forms
    assert recipe.hub is not None
    assert recipe.hub.options == options
    assert from_mapping(recipe.as_written()) == recipe, "a run's own recipe says it again"
    assert from_mapping(from_mapping({"model": "m", "data": {"train": "a"}}).as_written()).hub is None
