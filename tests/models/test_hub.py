"""The hub path is tested against a hub of our own on this machine, with the real client in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from download_hub import SHA, DownloadHub

from tunery.errors import MissingModelError
from tunery.models import hub

EXTRA_FILES = ("pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx", "original/params.json", "README.md")


@pytest.fixture
def tiny_hub(tiny_llama: Path) -> Iterator[DownloadHub]:
    files = {f.name: f.read_bytes() for f in tiny_llama.iterdir()}
    server = DownloadHub({**files, **dict.fromkeys(EXTRA_FILES, b"not wanted")})
    yield server
    server.shutdown()
    server.server_close()


ASK = """
import sys
from tunery.errors import TuneryError
from tunery.models.source import local_folder
try:
    print(local_folder(sys.argv[1], lambda m: print("SAID", m)))
except TuneryError as e:
    print("REFUSED", type(e).__name__, e)
"""


def _ask(name: str, home: Path, endpoint: str, **environment: str) -> list[str]:
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_OFFLINE")) and "proxy" not in k.lower()
    }
    result = subprocess.run(
        [sys.executable, "-c", ASK, name],
        env={**kept, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_download_takes_only_what_a_model_needs(tiny_hub: DownloadHub, tmp_path: Path, tiny_llama: Path) -> None:
    *said, folder = _ask("org/tiny", tmp_path, tiny_hub.address)
    assert any("downloading org/tiny (" in line for line in said)
    assert {f.name for f in Path(folder).iterdir()} == {f.name for f in tiny_llama.iterdir()}
    assert (Path(folder) / "model.safetensors").read_bytes() == (tiny_llama / "model.safetensors").read_bytes()
    assert not set(tiny_hub.fetched) & set(EXTRA_FILES)

    tiny_hub.asked.clear()
    assert _ask("org/tiny", tmp_path, tiny_hub.address) == [folder], "the second time nothing is downloaded"
    assert tiny_hub.asked == []
    assert _ask("org/tiny", tmp_path, tiny_hub.address, HF_HUB_OFFLINE="1") == [folder]

    (Path(folder) / "chat_template.jinja").unlink()
    assert _ask("org/tiny", tmp_path, tiny_hub.address)[-1] == folder, "an incomplete copy is completed"
    assert (Path(folder) / "chat_template.jinja").is_file()


def test_a_revision(tiny_hub: DownloadHub, tmp_path: Path) -> None:
    assert SHA in _ask("org/tiny@v1", tmp_path, tiny_hub.address)[-1]
    assert any(path.endswith("/revision/v1") for path in tiny_hub.asked)
    (refused,) = _ask("org/tiny@v9", tmp_path / "other", tiny_hub.address)
    assert refused.startswith("REFUSED MissingModelError the model org/tiny has no revision 'v9'")


def test_no_safetensors(tiny_hub: DownloadHub, tmp_path: Path) -> None:
    del tiny_hub.files["model.safetensors"]
    (refused,) = _ask("org/tiny", tmp_path, tiny_hub.address)
    assert refused.startswith("REFUSED MissingModelError the model org/tiny has no safetensors weights")
    assert tiny_hub.fetched == [], "nothing is downloaded before it is refused"


def test_gated_missing_and_broken(tiny_hub: DownloadHub, tmp_path: Path) -> None:
    secret = "hf_abcdefghijklmnop"
    (gated,) = _ask("org/gated", tmp_path, tiny_hub.address, HF_TOKEN=secret)
    assert "org/gated is gated: accept its licence" in gated
    assert "HF_TOKEN" in gated
    (missing,) = _ask("org/absent", tmp_path, tiny_hub.address, HF_TOKEN=secret)
    assert "gives no model org/absent" in missing
    assert "HF_TOKEN" in missing
    (broken,) = _ask("org/broken", tmp_path, tiny_hub.address, HF_TOKEN=secret)
    assert "could not be reached" in broken
    assert tiny_hub.tokens == {f"Bearer {secret}"}, "the token is sent"
    assert secret not in gated + missing + broken, "and never shown"


def test_offline_says_what_to_do_and_how_large_it_is(tmp_path: Path) -> None:
    (refused,) = _ask("phi-3-mini-4k", tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert refused == (
        "REFUSED MissingModelError the model microsoft/Phi-3-mini-4k-instruct (7.6 GB) is not on this machine and the hub could not "
        "be reached (HF_HUB_OFFLINE is set): "
        "connect once and run again or `hf download microsoft/Phi-3-mini-4k-instruct`, or give a local folder"
    )


def test_a_refused_connection(tmp_path: Path) -> None:
    (refused,) = _ask("org/tiny", tmp_path, "http://127.0.0.1:9")
    assert "org/tiny is not on this machine and the hub could not be reached (ConnectError" in refused


def test_a_hub_that_never_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, then says nothing
        (refused,) = _ask("org/tiny", tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "the hub could not be reached" in refused


def test_waiting_is_bounded_whatever_the_question_does() -> None:
    forever = threading.Event()
    with pytest.raises(TimeoutError, match="no answer in 0 s"):
        hub.within(0.05, forever.wait)
    assert hub.within(5, lambda: 7) == 7
    with pytest.raises(ValueError, match="boom"):
        hub.within(5, lambda: (_ for _ in ()).throw(ValueError("boom")))


def test_no_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

    info = ModelInfo(id="org/tiny", siblings=[{"rfilename": "model.safetensors", "size": 10**15}])
    monkeypatch.setattr(HfApi, "model_info", lambda *args, **options: info)
    with pytest.raises(MissingModelError, match=r"org/tiny is 1000000\.0 GB and the hub's cache has .* free; make room"):
        hub.download("org/tiny")
