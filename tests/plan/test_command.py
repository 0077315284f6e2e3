"""`tunery plan` as a user types it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jobs import write_job
from rows import TokenRow

from tunery import methods, tasks
from tunery.cli import main
from tunery.models.catalogue import CATALOGUE
from tunery.models.configs import _SHAPES, known_config
from tunery.plan import calibration
from tunery.plan.rates import Rates
from tunery.plan.whole import _tokens_read

Command = Callable[..., tuple[int, str, str]]

RATES = Rates(
    "a made-up machine",
    {
        kind: {"float32": 1e11, "bfloat16": 1e12}
        for kind in ("matrix", "tiles", "thin", "attention", "attention_backward", "moved", "streamed", "dequantised")
    },
    {"float32": 2e-6, "bfloat16": 2e-6},
    500_000_000,
    {"float32": 1.0, "bfloat16": 1.0},
    measured=True,
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setattr(calibration, "rates", lambda again=False: RATES)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunery", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main.run()
        out, err = capsys.readouterr()
        return int(e.value.code or 0), out, err

    return run


def test_the_table_as_json(command: Command, tiny_llama: Path, tmp_path: Path) -> None:
    code, out, _ = command("plan", write_job(tmp_path, tiny_llama), "--json", "--price", "2")
    assert code == 0
    plan = json.loads(out)
    cells = {(c["method"], c["sharding"]): c for c in plan["candidates"]}
    assert {"full", "lora", "dora", "qlora"} <= {method for method, _ in cells}
    assert plan["steps"] == 24
    lora, full = cells["lora", "none"], cells["full", "none"]
    assert lora["memory"]["weights"] * 2 < full["peak_memory_bytes"]
    assert sum(lora["memory"].values()) == lora["process_memory_bytes"] == lora["peak_memory_bytes"]
    assert cells["lora", "ddp"]["peak_memory_bytes"] == 2 * lora["peak_memory_bytes"]
    # A of 8 rows and B of 8 columns beside each of the seven matrices of two layers: hidden 64, key-value 32, intermediate 160.
    assert lora["trainable_parameters"] == 2 * 8 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 160) * 3)
    assert lora["price"] == pytest.approx((lora["seconds"] + lora["evaluate_seconds"]) / 3600 * 2, rel=0.2)
    assert {"method": "qlora", "sharding": "zero3"}.items() <= next(
        r for r in plan["refused"] if (r["method"], r["sharding"]) == ("qlora", "zero3")
    ).items()
    assert plan["recommended"] == {"method": "lora", "sharding": "none"}
    assert plan["lines"] == ["method: lora", "sharding: none"]


def test_the_table_for_people_on_named_hardware(command: Command, tiny_llama: Path, tmp_path: Path) -> None:
    code, out, err = command(
        "plan", write_job(tmp_path, tiny_llama), "--on", "a100-80gb", "--processes", "8", "--price", "1.99", "--watts", "300"
    )
    assert (code, out) == (0, "")
    assert "a100-80gb" in err
    assert "data sheet" in err
    assert "    method: lora" in err


def test_what_was_decided_for_the_recipe_comes_with_its_reason(command: Command, tiny_llama: Path, tmp_path: Path) -> None:
    open_ones = {"learning_rate": None, "rows_per_step": None, "precision": "auto"}
    recipe = write_job(tmp_path, tiny_llama, train=open_ones, sharding="ddp")
    _, _, err = command("plan", recipe)
    assert "tunery methods lora" in err
    code, out, _ = command("plan", recipe, "--json")
    decided = json.loads(out)["decided"]
    assert code == 0
    assert decided.keys() == {
        "train.precision",
        "train.learning_rate",
        "train.max_length",
        "train.tokens_per_step",
        "train.gradient_checkpointing",
        "sharding.processes",
    }
    rate, why = methods.get("lora").LEARNING_RATE
    assert decided["train.learning_rate"] == f"auto: {rate:g}, {why}"
    for key, reason in decided.items():
        assert f"    {key} " in err
        assert f"  {reason}\n" in err
    # What the recipe says itself needs no reason; named hardware has a precision of its own.
    _, out, _ = command("plan", recipe, "--json", "--on", "a100-80gb", "--set", "train.learning_rate=0.001")
    named = json.loads(out)["decided"]
    assert "train.learning_rate" not in named
    _, out, _ = command("plan", recipe, "--json", "--set", "train.precision=fp32", "--set", "sharding={stage: ddp, processes: 2}")
    assert not {"train.precision", "sharding.processes"} & json.loads(out)["decided"].keys()
    assert named["train.precision"] == "auto: bf16, a100-80gb has bfloat16 units by its data sheet"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--on", "a100-80g"), "did you mean `a100-80gb`?"),
        (("--fit", "plenty"), "write it as 2GB"),
        (("--processes", "0"), "--processes"),
        (("--set", "method=lorra"), "did you mean `lora`?"),
    ],
)
def test_bad_input_ends_with_two(command: Command, tiny_llama: Path, tmp_path: Path, arguments: tuple[str, str], says: str) -> None:
    code, _, err = command("plan", write_job(tmp_path, tiny_llama), *arguments)
    assert code == 2
    assert says in err


def test_settings_that_fit(command: Command, tiny_llama: Path, tmp_path: Path) -> None:
    recipe = write_job(tmp_path, tiny_llama)
    code, out, _ = command("plan", recipe, "--fit", "2GB", "--json")
    assert code == 0
    assert json.loads(out)["fitting"][0]["lines"] == ["# nothing has to change"]
    code, out, _ = command("plan", recipe, "--fit", "400MB", "--json")
    assert code == 1
    assert json.loads(out)["fitting"] == []


@pytest.mark.parametrize("name", sorted(_SHAPES))
def test_known_shapes_have_the_published_number_of_parameters(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(known_config(name))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(CATALOGUE[name].parameters, rel=1e-3)


@pytest.mark.real
def test_a_model_that_is_not_here_is_planned_by_its_shapes(command: Command, smollm2: Path, tmp_path: Path) -> None:
    recipe = write_job(tmp_path, smollm2, model="llama-3-70b", train={"precision": "auto"})
    code, out, _ = command("plan", recipe, "--on", "h100", "--processes", "8", "--json")
    assert code == 0
    plan = json.loads(out)
    assert plan["tokenizer"] == "smollm2-135m"
    cells = {(c["method"], c["sharding"]): c for c in plan["candidates"]}
    assert cells["lora", "none"]["memory"]["weights"] == 2 * 70_553_706_496
    assert cells["lora", "zero3"]["process_memory_bytes"] < plan["available_bytes"] < cells["lora", "none"]["process_memory_bytes"]


def test_fit_measures_the_machine_anew_once(command: Command, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def rates(again: bool = False) -> Rates:
        asked.append(again)
        return RATES

    monkeypatch.setattr(calibration, "rates", rates)
    assert command("plan", write_job(tmp_path, tiny_llama), "--fit", "2GB", "--calibrate", "--json")[0] == 0
    assert asked[0]
    assert asked.count(True) == 1


def test_methods_with_virtual_tokens_are_planned(command: Command, tiny_llama: Path, tmp_path: Path) -> None:
    plan = json.loads(command("plan", write_job(tmp_path, tiny_llama), "--json")[1])
    assert {"prompt", "p_tuning", "prefix"} <= {c["method"] for c in plan["candidates"]}
    assert [r for r in plan["refused"] if r["sharding"] == "any"] == []


def test_what_test_rows_begin_with_in_common_is_counted_once() -> None:
    rows = [TokenRow(np.array([*range(20), 100 + n, 7, 8]), np.ones(23, np.float32)) for n in range(3)]

    class Tested:
        lengths = np.array([len(row.tokens) for row in rows])

        def __getitem__(self, n: int) -> TokenRow:
            return rows[n]

    chat = SimpleNamespace(task=tasks.get("chat"), share_prefixes=True)
    apart = SimpleNamespace(task=tasks.get("chat"), share_prefixes=False)
    assert _tokens_read(apart, Tested(), 3) == 69  # type: ignore[arg-type]
    assert _tokens_read(chat, Tested(), 3) == 20 + 3 * 2  # type: ignore[arg-type]  # a row's last token is asked for, not read
    assert _tokens_read(chat, Tested(), 1) == 22  # type: ignore[arg-type]
