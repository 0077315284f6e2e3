"""Pushing to a hub of our own on this machine, by the real client in a process of its own (its endpoint is read once, on import)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, PushHub

ASK = """
import json, sys
from pathlib import Path
from tunery.errors import TuneryError
from tunery.export import hub
from tunery.progress import Lines
for what, settings in json.loads(sys.argv[1]):
    try:
        options = hub.Options(**settings)
        if what == "require":
            print("FINE", hub.require(options))
        else:
            print("PUSHED", json.dumps(hub.push(Path(what), options, "Fine-tuned by Tunery", Lines())))
    except TuneryError as e:
        print("REFUSED", type(e).__name__, e)
"""


@pytest.fixture
def hub() -> Iterator[PushHub]:
    server = PushHub()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "adapter"
    made.mkdir()
    (made / "adapter_model.safetensors").write_bytes(os.urandom(3000))
    (made / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# Mine\n")
    (made / "proof.json").write_text(json.dumps({"path": str(made)}))
    return made


def _ask(tmp_path: Path, endpoint: str, *asks: tuple[str, dict[str, Any]], **environment: str) -> tuple[list[str], str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    settings = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(asks)],
        env={**kept, **settings, "PYTHONPATH": os.pathsep.join(sys.path), "HF_TOKEN": TOKEN, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.splitlines(), result.stdout + result.stderr


def test_a_push_and_another(hub: PushHub, folder: Path, tmp_path: Path) -> None:
    said, everything = _ask(tmp_path, hub.address, ("require", {"repo": "org/mine"}), (str(folder), {"repo": "org/mine"}))
    assert said[0] == "FINE None"
    entry = json.loads(said[1].removeprefix("PUSHED "))
    assert entry == {"repo": "org/mine", "url": f"{hub.address}/org/mine", "commit": "abc123", "private": True}
    repo = hub.repos["org/mine"]
    assert repo["private"] is True, "nobody asked for a public one"
    expected = {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "proof.json"}
    assert repo["files"] == expected
    assert set(hub.cards) == {(folder / "README.md").read_text()}, "the hub checks the card"
    assert "pushing adapter to org/mine (private)" in everything
    assert TOKEN not in everything

    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    uploads = [a for a in hub.asked if a.startswith("PUT")]
    said, _ = _ask(tmp_path, hub.address, ("require", {"repo": "org/mine"}), (str(folder), {"repo": "org/mine"}))
    assert said[0] == "FINE None"
    assert said[1].startswith("PUSHED"), said[1]
    assert repo["files"]["README.md"] == (folder / "README.md").read_bytes()
    assert [a for a in hub.asked if a.startswith("PUT")] == uploads, "weights that are there are not sent again"


def test_public_only_when_it_is_said(hub: PushHub, folder: Path, tmp_path: Path) -> None:
    hub.repos["org/shown"] = {"private": False, "files": {}, "messages": []}
    said, _ = _ask(
        tmp_path,
        hub.address,
        ("require", {"repo": "org/shown"}),
        (str(folder), {"repo": "org/shown"}),
        ("require", {"repo": "org/shown", "private": False}),
        (str(folder), {"repo": "org/new", "private": False}),
    )
    assert said[0].startswith("REFUSED InputError export.hub: org/shown is public and the push is private unless told otherwise")
    assert said[1] == said[0]
    assert said[2] == "FINE None"
    assert json.loads(said[3].removeprefix("PUSHED "))["private"] is False
    assert hub.repos["org/shown"]["files"] == {}
    assert hub.repos["org/new"]["private"] is False


def test_what_is_wrong_is_said_before_training(hub: PushHub, tmp_path: Path) -> None:
    said, everything = _ask(
        tmp_path, hub.address, ("require", {"repo": "mine"}), ("require", {"repo": "org/a b"}), ("require", {"repo": "a/b/c"})
    )
    assert said[0] == "REFUSED InputError export.hub: 'mine' does not say whose repository it is; write it as org/name"
    assert said[1] == "REFUSED InputError export.hub: 'org/a b' is not a name that the hub takes; write it as org/name"
    assert said[2].startswith("REFUSED InputError export.hub: 'a/b/c'")
    assert not hub.asked, "the hub is not asked about these"
    hub.role = "read"
    (read_only,), _ = _ask(tmp_path, hub.address, ("require", {"repo": "org/mine"}))
    assert read_only.startswith("REFUSED InputError export.hub: HF_TOKEN may only read")
    (unknown,), everything = _ask(tmp_path, hub.address, ("require", {"repo": "org/mine"}), HF_TOKEN="hf_wrong_wrong")
    assert unknown == "REFUSED InputError export.hub: the hub does not know this HF_TOKEN; set it to a token that may write"
    assert "hf_wrong_wrong" not in everything
    (none,), _ = _ask(tmp_path, hub.address, ("require", {"repo": "org/mine"}), HF_TOKEN="")
    assert none.startswith("REFUSED InputError export.hub: a push needs a token that may write; set HF_TOKEN")
    (offline,), _ = _ask(tmp_path, hub.address, ("require", {"repo": "org/mine"}), HF_HUB_OFFLINE="1")
    assert offline.startswith("REFUSED InputError export.hub: HF_HUB_OFFLINE is set")
    (away,), _ = _ask(tmp_path, "http://127.0.0.1:9", ("require", {"repo": "org/mine"}))
    assert away.startswith("REFUSED InputError export.hub: the hub cannot be asked about org/mine (ConnectError")


def test_a_hub_that_refuses_the_push(hub: PushHub, folder: Path, tmp_path: Path) -> None:
    hub.broken = True
    said, everything = _ask(tmp_path, hub.address, (str(folder), {"repo": "org/mine"}), (str(folder), {"repo": "forbidden/mine"}))
    for line, repo in zip(said, ("org/mine", "forbidden/mine"), strict=True):
        assert line.startswith(f"REFUSED RunError the hub did not take {repo} (")
        assert f"push it with `tunery export RUN --to hub:{repo}`" in line
    assert TOKEN not in everything
    assert (folder / "proof.json").is_file()
