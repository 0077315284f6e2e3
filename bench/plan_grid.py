"""`make plan-grid`: what `tunery plan` predicts against what training takes, cell by cell; writes docs/plan-grid.md.

    python bench/plan_grid.py                    # all 72 cells: 4 methods × 3 lengths × 2 batch sizes × 3 model sizes
    python bench/plan_grid.py --cells lora-512-8-135m,full-128-2-30m

Cells that differ in the method alone are planned together. Each is then trained for some steps in a process of its own, without
evaluation and export, and that process tells its peak resident size and the seconds of its steps. Cells that were measured are kept in
bench/results/plan-grid.json and not measured again; delete it to begin anew, as is needed on another machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunery.run import Run, write_text

ROOT = Path(__file__).parents[1]
METHODS = ("full", "lora", "dora", "qlora")
LENGTHS = (128, 512, 1024)
ROWS = (2, 8)
# (hidden, intermediate, layers, heads, key-value heads), with SmolLM2-135M's own vocabulary and tokenizer.
MODELS = {"30m": (320, 864, 8, 5, 5), "135m": (576, 1536, 30, 9, 3), "360m": (960, 2560, 32, 15, 5)}
STEPS = 16
"""The rows are for so many steps, and at most so many are taken."""
SECONDS = 6.0
"""Steps are taken for about this long, as planned, but at least three."""
RESULTS, PAGE = ROOT / "bench" / "results" / "plan-grid.json", ROOT / "docs" / "plan-grid.md"


def cells() -> list[str]:
    return ["-".join(map(str, cell)) for cell in itertools.product(METHODS, LENGTHS, ROWS, MODELS)]


def model_folder(name: str, where: Path) -> Path:
    """A random model of that size with the real tokenizer: weights do not change what training takes."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tunery.models.load import load_tokenizer
    from tunery.models.source import local_folder

    hidden, intermediate, layers, heads, key_values = MODELS[name]
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    folder = where / name
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    load_tokenizer(local_folder("smollm2-135m")).save_pretrained(str(folder))
    return folder


def write_recipe(cell: str, folder: Path, where: Path) -> Path:
    """A recipe whose rows all have the cell's length: words drawn at random, so that no two begin alike."""
    import random

    import yaml

    method, length, rows, _ = cell.split("-")
    rng = random.Random(cell)
    words = ["river", "cold", "water", "house", "train", "letter", "garden", "number"]
    lines = [{"text": " ".join(rng.choice(words) for _ in range(int(length) * 2))} for _ in range(int(rows) * STEPS)]
    (where / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    recipe = {
        "model": str(folder),
        "task": "text",
        "data": {"train": "train.jsonl", "max_truncated": 1.0},
        "method": method,
        "train": {"rows_per_step": int(rows), "max_length": int(length), "checkpoint_every": 10_000},
        "evaluate": {"forgetting_tokens": 0},
        "export": ["merged"] if method == "full" else ["adapter"],
    }
    path = where / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def planned(recipe: Path) -> dict[str, Any]:
    """The plan of the recipe's rows with each method, in one process: `{"precision", "calibration", method: {"bytes", "seconds"}}`."""
    from tunery.launch.work import prepare_data
    from tunery.models.load import load_tokenizer
    from tunery.plan import calibration
    from tunery.plan.whole import make
    from tunery.progress import Quiet
    from tunery.recipe import read
    from tunery.resolve import resolve

    resolved = resolve(read(recipe), Quiet(), str(recipe))
    prepared = prepare_data(resolved, resolved.renderer(load_tokenizer(resolved.folder)), recipe.parent, Quiet())
    plan = make(resolved, prepared, only=METHODS)
    own = {c.method: {"bytes": c.memory.total_bytes, "seconds": c.seconds / plan.steps} for c in plan.candidates if c.sharding == "none"}
    return {"precision": plan.precision, "calibration": calibration.described(), **own}


def trained(recipe: Path, steps: int) -> dict[str, float]:
    """Train that many steps in this process: its peak resident size in bytes, and the mean seconds of a step.

    The first step is left out: it also makes the optimiser's state and what libraries prepare once.
    """
    import tunery.pipeline  # noqa: F401  a job has it, and its size counts
    from tunery.infer.open_engine import load_base
    from tunery.launch.work import prepare_data
    from tunery.machine import peak_memory
    from tunery.models.load import load_tokenizer
    from tunery.progress import Quiet
    from tunery.recipe import read
    from tunery.resolve import resolve
    from tunery.train import learners, loop

    resolved = resolve(read(recipe), Quiet(), str(recipe))
    prepared = prepare_data(resolved, resolved.renderer(load_tokenizer(resolved.folder)), recipe.parent, Quiet())
    run = Run.create(recipe.parent / "run", resolved.recipe)
    model = load_base(resolved.recipe, resolved.folder, resolved.dtype, resolved.device)
    model = resolved.method.attach(model, resolved.options, resolved.settings.seed)
    learner = learners.get(resolved.task, resolved.task_options, resolved.share_prefixes)
    settings = replace(resolved.settings, max_steps=steps)
    loop.train(run, model, resolved.method, resolved.options, learner, prepared.train, settings, Quiet())
    lines = run.metrics()
    return {"bytes": peak_memory(), "seconds": (lines[-1]["seconds"] - lines[0]["seconds"]) / (len(lines) - 1), "steps": len(lines)}


def pace() -> Any:
    """A function that says how long the calibration's own reference batch takes now over what it took at calibration.

    A shared machine is at times half as fast as at others; whether the plan counts rightly is seen beside that.
    """
    import torch

    from tunery.plan import calibration
    from tunery.plan._reference import batch
    from tunery.train import precision

    of = precision.choose("auto", "cpu")[0]
    compute, counted = batch(getattr(torch, of), calibration.TOKENS)
    then = calibration.rates().seconds(counted.operations, of)
    return lambda: calibration.medians([compute], 1.0)[0] / then


def measure(cells: list[str], folder: Path) -> Any:
    """For each of some cells that differ in the method alone, what was planned and measured, as soon as it is."""
    now = pace()
    with tempfile.TemporaryDirectory() as temporary:
        plan = planned(write_recipe(cells[0], folder, Path(temporary)))
    for cell in cells:
        own = plan[cell.split("-")[0]]
        steps = min(STEPS, max(3, round(SECONDS / own["seconds"])))
        began, before = time.monotonic(), now()
        with tempfile.TemporaryDirectory() as temporary:
            recipe = write_recipe(cell, folder, Path(temporary))
            command = [sys.executable, __file__, "--train", str(recipe), "--steps", str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{cell}\n{done.stderr[-2000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
        yield (
            cell,
            {
                "planned_bytes": own["bytes"],
                "measured_bytes": found["bytes"],
                "planned_seconds": own["seconds"],
                "measured_seconds": found["seconds"],
                "pace": (before + now()) / 2,
                "steps": found["steps"],
                "whole_seconds": time.monotonic() - began,
                "precision": plan["precision"],
                "calibration": plan["calibration"],
            },
        )


def page(results: dict[str, dict[str, Any]]) -> str:
    from tunery.machine import cores, cpu_name, memory

    head = "method | length | rows a step | model | planned GB | measured GB | error | planned s a step | measured s a step | pace | error"
    lines = [f"| {head} |", "|" + " --- |" * 11]
    space, time = [], []
    for cell, found in results.items():
        errors = [
            found["planned_bytes"] / found["measured_bytes"] - 1,
            found["planned_seconds"] * found["pace"] / found["measured_seconds"] - 1,
        ]
        space.append(abs(errors[0]))
        time.append(abs(errors[1]))
        sizes = f"{found['planned_bytes'] / 1e9:.2f} | {found['measured_bytes'] / 1e9:.2f} | {errors[0]:+.0%}"
        times = f"{found['planned_seconds']:.2f} | {found['measured_seconds']:.2f} | {found['pace']:.2f} | {errors[1]:+.0%}"
        lines.append(f"| {' | '.join(cell.split('-'))} | {sizes} | {times} |")
    n = len(results)
    precisions, calibrations = ({found[what] for found in results.values()} for what in ("precision", "calibration"))
    summary = [
        f"{n} of {len(cells())} cells on {cores()} cores of {cpu_name()} with {memory()[0] / 1e9:.0f} GB of memory, where `precision: auto` "
        f"chooses {' or '.join(sorted(precisions))}. Peak memory is within 10 % in {sum(e <= 0.1 for e in space)} of {n} "
        f"(worst {max(space):.0%}), time within 20 % in {sum(e <= 0.2 for e in time)} of {n} (worst {max(time):.0%}).",
        "The plan divides what it counts by rates that the machine was measured to reach:",
        *(f"- {text}" for text in sorted(calibrations)),
        f"Every cell takes 3 to {STEPS} steps, all rows have the cell's length and no two begin alike; the time is the mean of its steps after the first. "
        "Pace is how long the calibration's reference batch took just before and after the cell, over what it took at calibration; time's error "
        "is that of the planned time at this pace.",
    ]
    return "\n\n".join(["# The plan against what was measured", "Written by `make plan-grid`.", *summary, "\n".join(lines)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", help="some of them, with commas between")
    parser.add_argument("--train", type=Path, metavar="RECIPE", help="train this recipe here and now, and print what it took")
    parser.add_argument("--steps", type=int, default=STEPS, help="with --train")
    args = parser.parse_args()
    if args.train:
        print(json.dumps(trained(args.train, args.steps)))
        return
    chosen = args.cells.split(",") if args.cells else cells()
    unknown = set(chosen) - set(cells())
    if unknown:
        parser.error(f"no such cell: {', '.join(sorted(unknown))}; one is called like {cells()[0]}")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[str]] = {}
    for cell in chosen:
        if cell not in results:
            groups.setdefault(cell.partition("-")[2], []).append(cell)
    with tempfile.TemporaryDirectory() as temporary:
        folders: dict[str, Path] = {}
        for group in groups.values():
            size = group[0].split("-")[3]
            if size not in folders:
                folders[size] = model_folder(size, Path(temporary))
            for cell, found in measure(group, folders[size]):
                results[cell] = found
                write_text(RESULTS, json.dumps(results, indent=1) + "\n")
                shown = {k: round(v / 1e9, 2) if "bytes" in k else round(v, 2) for k, v in found.items() if not isinstance(v, str)}
                print(cell, shown, flush=True)
    write_text(PAGE, page({cell: results[cell] for cell in cells() if cell in results}))


if __name__ == "__main__":
    main()
