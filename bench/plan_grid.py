"""`make plan-grid`: what `tunery plan` predicts against what training takes, cell by cell; writes docs/plan-grid.md.

    python bench/plan_grid.py                    # all 72 cells: 4 methods × 3 lengths × 2 batch sizes × 3 model sizes
    python bench/plan_grid.py --cells lora-512-8-135m,full-128-2-30m

Each cell is planned, then trained for some steps in a process of its own, whose peak resident size is read from itself. Cells that were
measured are kept in bench/results/plan-grid.json and not measured again; delete it to begin anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tunery.run import write_text

ROOT = Path(__file__).parents[1]
METHODS = ("full", "lora", "dora", "qlora")
LENGTHS = (128, 512, 1024)
ROWS = (2, 8)
# (hidden, intermediate, layers, heads, key-value heads), with SmolLM2-135M's own vocabulary and tokenizer.
MODELS = {"30m": (320, 864, 8, 5, 5), "135m": (576, 1536, 30, 9, 3), "360m": (960, 2560, 32, 15, 5)}
STEPS = 6
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


def measure(cell: str) -> dict[str, float]:
    """`{"planned_bytes", "measured_bytes", "planned_seconds", "measured_seconds"}`."""
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(temporary)
        recipe = write_recipe(cell, model_folder(cell.split("-")[3], where), where)
        planned = tunery(where, "plan", recipe.name, "--json")
        own = next(c for c in planned["candidates"] if c["method"] == cell.split("-")[0] and c["sharding"] == "none")
        trained = tunery(where, "train", recipe.name, "--run", "run", "--json")["train"]
    return {
        "planned_bytes": own["peak_memory_bytes"],
        "measured_bytes": trained["peak_memory_bytes"],
        "planned_seconds": own["seconds"],
        "measured_seconds": trained["seconds"],
    }


def tunery(where: Path, *words: str) -> Any:
    code = "from tunery.cli.main import run; run()"
    result = subprocess.run([sys.executable, "-c", code, *words], cwd=where, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"tunery {' '.join(words)}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout)


def page(results: dict[str, dict[str, float]]) -> str:
    from tunery.machine import cores, cpu_name

    head = "method | length | rows a step | model | planned GB | measured GB | error | planned s | measured s | error"
    lines = [f"| {head} |", "|" + " --- |" * 10]
    memory, time = [], []
    for cell, found in results.items():
        errors = [found[f"planned_{what}"] / found[f"measured_{what}"] - 1 for what in ("bytes", "seconds")]
        memory.append(abs(errors[0]))
        time.append(abs(errors[1]))
        sizes = f"{found['planned_bytes'] / 1e9:.2f} | {found['measured_bytes'] / 1e9:.2f} | {errors[0]:+.0%}"
        times = f"{found['planned_seconds']:.1f} | {found['measured_seconds']:.1f} | {errors[1]:+.0%}"
        lines.append(f"| {' | '.join(cell.split('-'))} | {sizes} | {times} |")
    n = len(results)
    summary = (
        f"{n} of {len(cells())} cells on {cores()} cores of {cpu_name()}. Peak memory is within 10 % in {sum(e <= 0.1 for e in memory)} of {n} "
        f"(worst {max(memory):.0%}), time within 20 % in {sum(e <= 0.2 for e in time)} of {n} (worst {max(time):.0%})."
    )
    return f"# The plan against what was measured\n\nWritten by `make plan-grid`.\n\n{summary}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", help="some of them, with commas between")
    wanted = parser.parse_args().cells
    chosen = wanted.split(",") if wanted else cells()
    unknown = set(chosen) - set(cells())
    if unknown:
        parser.error(f"no such cell: {', '.join(sorted(unknown))}; one is called like {cells()[0]}")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for cell in chosen:
        if cell not in results:
            results[cell] = measure(cell)
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            write_text(RESULTS, json.dumps(results, indent=1) + "\n")
        print(cell, {k: round(v / 1e9, 2) if "bytes" in k else round(v, 1) for k, v in results[cell].items()}, flush=True)
    write_text(PAGE, page({cell: results[cell] for cell in cells() if cell in results}))


if __name__ == "__main__":
    main()
