"""The commands as a user types them: exit codes, one sentence for what is wrong, one JSON object on standard output."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jobs import write_job

from tunery.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `tunery ARGUMENTS` here: (exit code, standard output, standard error)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunery", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main.run()
        out, err = capsys.readouterr()
        return int(e.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def run_folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tunery

    folder = tmp_path_factory.mktemp("job")
    tunery.finetune(write_job(folder, tiny_llama), run=folder / "run")
    return folder / "run"


def test_train_prints_the_report_as_json_and_the_table_for_people(command: Command, tiny_llama: Path, tmp_path: Path) -> None:
    recipe = write_job(tmp_path, tiny_llama)
    code, out, err = command("train", recipe, "--run", tmp_path / "run", "--set", "train.max_steps=3", "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["status"], report["train"]["steps"]) == ("succeeded", 3)
    assert report["command"].startswith("tunery train ")
    assert "train" in err
    code, out, err = command("report", tmp_path / "run")
    assert (code, out) == (0, "")
    assert "accuracy" in err.lower()


def test_check_shows_and_refuses(command: Command, tiny_llama: Path, tmp_path: Path) -> None:
    recipe = write_job(tmp_path, tiny_llama)
    code, out, err = command("check", recipe)
    assert (code, out) == (0, "")
    assert "96" in err
    with (tmp_path / "train.jsonl").open("a") as f:
        f.write("{broken\n")
    code, out, err = command("check", recipe, "--json")
    assert code == 2
    assert json.loads(out)["problems"][0]["line"] == 97
    code, out, err = command("train", recipe, "--run", tmp_path / "run")
    assert code == 2
    assert err.strip().splitlines()[-1].startswith(f"{tmp_path / 'train.jsonl'}:97: ")
    assert not (tmp_path / "run").exists()


def test_resume_eval_and_chat(command: Command, run_folder: Path) -> None:
    code, out, _ = command("resume", run_folder, "--json")
    assert code == 0
    report = json.loads(out)
    code, out, _ = command("eval", run_folder, "--json")
    assert code == 0
    again = json.loads(out)
    assert again["metrics"] == report["evaluation"]["after"]
    code, out, _ = command("eval", run_folder, "--base", "--json")
    assert json.loads(out)["metrics"] == report["evaluation"]["before"]
    code, out, _ = command("chat", run_folder, "-m", "A river likes cold water.", "--max-new-tokens", "5", "--json")
    assert code == 0
    assert isinstance(json.loads(out)["answer"], str)


def test_export_of_a_run_and_of_a_bare_model(command: Command, run_folder: Path, tiny_phi3: Path, tmp_path: Path) -> None:
    code, out, _ = command("export", run_folder, "--to", "merged", "--out", tmp_path / "merged", "--json")
    assert code == 0
    assert json.loads(out)["greedy_match"] >= 0.999
    code, out, _ = command("export", tiny_phi3, "--to", "merged", "--out", tmp_path / "bare", "--json")
    assert code == 0
    code, out, _ = command("chat", tmp_path / "bare", "-m", "hello", "--max-new-tokens", "3", "--json")
    assert code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.yaml"], "none.yaml: there is no such recipe file"),
        (["train"], "Missing argument"),
        (["train", "a.yaml", "--sett", "x=1"], "--sett"),
        (["trian", "a.yaml"], "trian"),
        (["resume", "."], "not a run directory"),
        (["report", "."], "not a run directory"),
        (["chat", "nothing-here", "-m", "hello"], "unknown"),
        (["chat", "nothing-here", "--engine", "tensorrt", "-m", "hello"], "engine `tensorrt` is not known"),
        (["export", "nothing-here", "--to", "merged", "--out", "x"], "unknown"),
        (["export", "nothing-here", "--to", "gguff", "--out", "x"], "export `gguff` is not known"),
        (["export", "nothing-here", "--to", "onnx:int3", "--out", "x"], "choose fp32, int8, int4"),
    ],
)
def test_what_is_wrong_ends_with_2_and_one_sentence(command: Command, arguments: list[str], message: str) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_an_error_is_json_too(command: Command) -> None:
    code, out, _ = command("resume", "nowhere", "--json")
    assert code == 2
    assert json.loads(out)["exit_code"] == 2


def test_version_and_help(command: Command) -> None:
    import tunery

    assert command("--version")[:2] == (0, f"{tunery.__version__}\n")
    code, out, _ = command("--help")
    assert code == 0
    assert all(name in out for name in ("check", "train", "resume", "eval", "export", "report", "chat", "doctor"))


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from tunery.cli import main; print([m for m in ('torch', 'transformers', 'pydantic', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_ctrl_c_ends_with_130_and_can_be_resumed(tiny_llama: Path, tmp_path: Path) -> None:
    import signal
    import time

    recipe = write_job(tmp_path, tiny_llama, train={"epochs": 400, "checkpoint_every": 50}, evaluate={"forgetting_tokens": 0})
    script = "from tunery.cli.main import run; run()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "train", str(recipe), "--run", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") > 5) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"tunery resume {tmp_path / 'run'}" in err
    report: dict[str, Any] = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["status"] == "cancelled"
