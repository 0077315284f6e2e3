"""`tunery import` as a user types it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from other_tools import AXOLOTL, CONFIGS, RECIPES

from tunery.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunery", "import", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main.run()
        out, err = capsys.readouterr()
        return int(e.value.code or 0), out, err

    return run


def test_the_recipe_is_printed_with_every_key_that_is_left_over(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    file.write_text(AXOLOTL)
    code, out, err = command(file)
    assert code == 0
    assert {k: v for k, v in yaml.safe_load(out).items() if k != "track"} == RECIPES["axolotl"]
    comments = [line.removeprefix("# ") for line in out.splitlines() if line.startswith("#")]
    assert comments == err.splitlines()
    assert "fsdp_config.fsdp_made_up, context_parapllel_size: not understood" in comments
    assert sum(line.startswith("note: ") for line in comments) >= 1


def test_a_recipe_is_written_once_and_can_be_checked(command: Command, tmp_path: Path) -> None:
    from tunery.recipe import read

    file, out_file = tmp_path / "a.yml", tmp_path / "recipe.yaml"
    file.write_text(AXOLOTL)
    code, out, err = command(file, "--out", out_file, "--from", "axolotl")
    assert (code, out) == (0, "")
    assert f"{out_file}: written" in err
    assert "context_parapllel_size: not understood" in out_file.read_text()
    assert read(out_file).model == "org/base-1b"
    code, _, err = command(file, "--out", out_file)
    assert code == 2
    assert err.strip() == f"{out_file}: there is a file already; remove it or name another"


@pytest.mark.parametrize("tool", CONFIGS)
def test_json_holds_all_of_it(command: Command, tmp_path: Path, tool: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(CONFIGS[tool])
    code, out, err = command(file, "--json")
    found = json.loads(out)
    assert (code, found["tool"]) == (0, tool)
    assert set(found) == {"tool", "recipe", "left_over", "notes"}
    assert all(set(item) == {"key", "reason"} and item["key"] in err for item in found["left_over"])


def test_a_key_cannot_end_a_comment(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"base_model": "a", "num_epochs": 1, "x\nmodel: evil": 1, "y\u2028z\x85": 2}))
    code, out, _ = command(file)
    assert code == 0
    assert yaml.safe_load(out)["model"] == "a"


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("learning_rate: 1\n", [], "no sign of the tool that wrote it; name it with --from: axolotl,"),
        ("base_model: a\nstage: sft\n", [], "this can be of axolotl or of llamafactory; name one with --from"),
        ("base_model: a\n", ["--from", "axolotel"], "--from axolotel: not known; did you mean `axolotl`?"),
        ("- a\n", [], "a training configuration is a mapping of keys, this is a list"),
        ("base_model: a\nrl: grpo\n", [], "rl: `grpo` is reinforcement learning"),
    ],
)
def test_what_is_wrong_ends_with_2_and_one_sentence(
    command: Command, tmp_path: Path, content: str, arguments: list[str], message: str
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(content)
    code, out, err = command(file, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    code, out, _ = command(file, *arguments, "--json")
    assert json.loads(out)["exit_code"] == 2


def test_a_missing_file(command: Command, tmp_path: Path) -> None:
    code, _, err = command(tmp_path / "none.yaml")
    assert code == 2
    assert "there is no such file" in err
