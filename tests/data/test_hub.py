from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunery.data import hub
from tunery.data.rows import read_rows
from tunery.errors import DataError, InputError, MissingExtraError


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("org/name", ("org/name", None, "train")),
        ("org/name:test", ("org/name", None, "test")),
        ("org/name/en:train[:10%]", ("org/name", "en", "train[:10%]")),
    ],
)
def test_names(source: str, parts: tuple[Any, ...]) -> None:
    assert hub.is_identifier(source)
    assert hub._parts(source) == parts


@pytest.mark.parametrize("source", ["name", "/org/name", "org/name/en/more", "org name/x", "org/"])
def test_other_names_are_files(source: str) -> None:
    assert not hub.is_identifier(source)
    with pytest.raises(DataError, match="there is no such file"):
        list(read_rows(source))


def test_rows_are_streamed_numbered_and_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: dict[str, Any] = {}

    def load_dataset(name: str, config: str | None, **options: Any) -> Any:
        asked.update(name=name, config=config, **options)
        rows = [
            {"prompt": "a", "completion": "b", "id": 1},
            {"prompt": "c", "completion": "d", "id": 2},
            {"prompt": "e", "completion": "", "id": 3},
        ]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "revision", lambda source: "abc")
    problems: list[DataError] = []
    rows = list(read_rows("org/name/en:validation", on_problem=problems.append))
    assert asked == {"name": "org/name", "config": "en", "split": "validation", "streaming": True, "revision": "abc"}
    assert [(r.line, r.value["completion"]) for r in rows] == [(1, "b"), (2, "d")]
    assert [str(p) for p in problems] == ["org/name/en:validation:3: `completion` is empty; write the answer or remove the row"]


def test_a_split_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ValueError("Bad split: dev. Available splits: ['train']")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "revision", lambda source: "abc")
    with pytest.raises(DataError, match="Available splits"):
        list(read_rows("org/name:dev"))


def test_without_the_library_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "tunery\[hub-data\]"'):
        list(read_rows("org/name"))


def test_a_hub_that_never_answers_is_said_in_half_a_minute() -> None:
    pytest.importorskip("datasets")
    with socket.socket() as listener:  # takes the connection and says nothing
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        code = "from tunery.data.rows import read_rows; list(read_rows('org/name'))"
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "PYTHONPATH": str(Path(hub.__file__).parents[2]),
            "PATH": "",
        }
        # 30 s, and what the interpreter and its libraries need on a busy machine
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=45, check=False)
    assert "InputError: org/name: there is no such file, and the data set could not be reached" in done.stderr


def test_offline_is_said_at_once() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match="could not be reached"):
        hub.revision("org/name")
