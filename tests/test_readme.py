"""The README cannot drift: its recipe is trained and its commands are run, with a tiny model and tiny data in place of the real ones."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jobs import chat_lines

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text(chat_lines(96, 1))
    (tmp_path / "test.jsonl").write_text(chat_lines(24, 2))
    recipe = yaml.safe_load(blocks("yaml")[0])
    assert recipe["model"] == "smollm2-135m"
    recipe["model"] = str(tiny_llama)
    recipe["evaluate"]["forgetting_tokens"] = 500
    recipe["export"] = ["adapter", "merged"]  # a random model has no task for a quantised export to keep
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def test_the_commands_run_in_the_order_shown(folder: Path) -> None:
    shown = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines() if line.startswith("tunery ")]
    assert {line.split()[1] for line in shown} == {
        "check",
        "plan",
        "train",
        "resume",
        "chat",
        "eval",
        "export",
        "report",
        "methods",
        "doctor",
    }
    for line in shown:
        words = shlex.split(line)[1:]
        if words[0] == "train":
            words += ["--run", "runs/NAME"]
        if words[0] == "chat":
            words += ["-m", "A river likes cold water.", "--max-new-tokens", "4"]
        result = subprocess.run(
            [sys.executable, "-c", "from tunery.cli.main import run; run()", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{line}\n{result.stderr}"
    assert (folder / "exported" / "genai_config.json").is_file()


def test_the_python_example_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_llama: Path
) -> None:
    (example,) = blocks("python")
    monkeypatch.chdir(folder)
    exec(compile(example.replace("smollm2-135m", str(tiny_llama)), "README.md", "exec"), {})
    assert "report.html" in capsys.readouterr().out


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_the_map_names_every_room() -> None:
    rooms = {p.name + "/" for p in (ROOT / "src" / "tunery").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert all(f"`{room}`" in README for room in rooms)


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).is_file(), link


def test_the_further_lines_of_a_recipe_are_known() -> None:
    from tunery.recipe import from_mapping

    for block in blocks("yaml")[1:]:
        written = yaml.safe_load(block)
        assert from_mapping({"model": "m", "data": {"train": "t.jsonl"}, **written}).as_written().keys() >= written.keys()
