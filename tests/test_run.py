"""The run directory: whole files or none, and nothing overwritten."""

import json
from pathlib import Path

import pytest

from tunery.errors import InputError
from tunery.recipe import from_mapping
from tunery.run import Run, default_path, new_folder, write_text

RECIPE = from_mapping({"model": "smollm2-135m", "data": {"train": "train.jsonl"}})


def test_create_open_and_read_back(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RECIPE)
    assert Run.open(tmp_path / "run").recipe() == RECIPE
    run.write_json("report.json", {"a": "ž"})
    assert run.read_json("report.json") == {"a": "ž"}
    assert run.read_json("plan.json") is None


def test_a_used_directory_is_refused(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", RECIPE)
    with pytest.raises(InputError, match="already in use"):
        Run.create(tmp_path / "run", RECIPE)
    with pytest.raises(InputError, match="not a run directory"):
        Run.open(tmp_path)


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RECIPE)
    run.metrics_file.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert run.metrics() == [{"step": 1}]


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(RuntimeError, match="stop"), new_folder(target) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())
    for content in ("one", "two"):
        with new_folder(target) as folder:
            (folder / "file").write_text(content)
        assert (target / "file").read_text() == content
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failed_write_leaves_the_old_text(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\ud800")
    assert file.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_default_path_takes_the_recipe_or_its_folder(tmp_path: Path) -> None:
    (tmp_path / "news").mkdir()
    assert default_path(tmp_path / "news" / "recipe.yaml", tmp_path).name.startswith("news-")
    assert default_path(tmp_path / "headlines.yaml", tmp_path).name.startswith("headlines-")
    first = default_path(tmp_path / "a.yaml", tmp_path)
    first.mkdir()
    assert default_path(tmp_path / "a.yaml", tmp_path) != first
