"""W&B without its service: offline files, read back by their published format."""

from __future__ import annotations

import importlib
import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from tracked import LINES, REPORT, Said, train

from tunery.errors import InputError
from tunery.recipe import Recipe
from tunery.run import Run
from tunery.trackers import observers, wandb

pytest.importorskip("wandb", reason="wandb is not installed; pip install 'tunery[track]'")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def _records(file: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32768 bytes, a record's parts with a header of 7) after W&B's own 7."""
    protocol: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    data, at, found, whole = file.read_bytes(), 7, [], b""
    assert data[:4] in (b":W&B", b"")
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])  # the checksum stands before them
        if at + 7 + length > len(data):
            break  # still being written
        part, at = data[at + 7 : at + 7 + length], at + 7 + length
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):  # a whole record, or its last part
            record = protocol.Record()
            record.ParseFromString(whole)
            found.append(record)
    return found


def _whole(file: Path) -> list[Any]:
    """The records, once the last of a run is there: W&B's own process writes them, and may still be at it when the run has ended."""
    for _ in range(300):
        records = _records(file)
        if any(r.WhichOneof("record_type") == "exit" for r in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{file} is not finished: {[r.WhichOneof('record_type') for r in records]}")


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_a_run_and_its_resumption_have_one_id(run: Run, recipe: Recipe, said: Said) -> None:
    chosen = [("wandb", wandb.Options(project="headlines"))]
    first = observers.begin(run, recipe, chosen, said)
    train(run, LINES[:5])
    first.end({"status": "cancelled"})
    second = observers.begin(run, recipe, chosen, said)
    train(run, LINES[3:], kept=3)
    second.end(REPORT)
    assert said.lines == []
    identity = run.read_json(observers.FILE)["wandb"]
    files = sorted((run.path / "wandb").glob(f"offline-run-*-{identity}*/*.wandb"), key=lambda f: f.stat().st_mtime)
    assert len(files) == 2
    rows: dict[int, dict[str, Any]] = {}
    for file in files:
        records = _whole(file)
        (begun,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
        assert begun.run_id == identity
        assert begun.project == "headlines"
        assert _items(begun.config.update)["model"] == "smollm2-135m"
        for record in records:
            if record.WhichOneof("record_type") == "history":
                row = _items(record.history.item)
                rows[row["_step"]] = row
    assert {step: row["loss"] for step, row in rows.items()} == {line["step"]: line["loss"] for line in LINES}
    summary: dict[str, Any] = {}
    for record in _whole(files[-1]):
        if record.WhichOneof("record_type") == "summary":
            summary |= _items(record.summary.update)
    assert summary["after/exact_match"] == 0.75
    assert summary["status"] == "succeeded"


def test_a_key_is_needed_when_it_is_not_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(InputError, match="wandb has no key; set WANDB_API_KEY"):
        wandb.require(wandb.Options())
    wandb.require(wandb.Options(mode="offline"))
