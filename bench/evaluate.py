"""Evaluation beside transformers' generate: greedy answers to 400 held-out headlines, before and after a short training.

    python bench/evaluate.py                 # alone; bench/run.py makes it a section of its report
    python bench/evaluate.py --quick

Both sides get the same weights, prompts, most new tokens and number format; they must give the same tokens in float32. The peer gets its
best batch. Tunery is measured twice: with the answers alone, as the peer, and with all that a report needs (also the likelihood of the
right answer and of every label).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tunery.errors import RunError, TuneryError
from tunery.models.source import local_folder

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MODEL = "smollm2-135m"
BATCHES = (16, 32, 64, 128)
ROWS, TRIED_ROWS, TRAIN_ROWS = 400, 128, 640
NEW_TOKENS = 9
"""The right answer's one token, and the eight beyond it that an evaluation allows."""


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {message}", file=sys.stderr, flush=True)


def section(model: Path, data: Path, peer: Path, rounds: int, quick: bool = False) -> list[dict[str, Any]]:
    """The measurements of each model, ready for the report. peer: the interpreter of the peer's environment."""
    from tunery.train import precision

    dtype = precision.choose("auto", "cpu")[0]
    rows, tried_rows = (32, 16) if quick else (ROWS, TRIED_ROWS)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        asked = prompts(work, model, data, rows)
        models = {"before training": model, "after training": _trained(work, data, 32 if quick else TRAIN_ROWS)}
        return [_measure(name, m, asked, data / "test.jsonl", peer, dtype, rounds, rows, tried_rows) for name, m in models.items()]


def _measure(
    name: str, model: Path, prompts: Path, test: Path, peer: Path, dtype: str, rounds: int, rows: int, tried_rows: int
) -> dict[str, Any]:
    def run(side: str, *options: str, kind: str = dtype, limit: int = rows) -> dict[str, Any]:
        python, script = (peer, "peer_generate.py") if side == "peer" else (Path(sys.executable), "ours_evaluate.py")
        files = ["--model", str(model), "--prompts", str(prompts), "--limit", str(limit), "--dtype", kind]
        found: dict[str, Any] = json.loads(_call([str(python), str(HERE / script), *files, *options], side == "peer").splitlines()[-1])
        say(f"  {name}: {side:5} {found['rows_per_second']:6.2f} rows/s  {kind} {' '.join(o for o in options if '/' not in o)}")
        return found

    tried = {batch: run("peer", "--batch", str(batch), limit=tried_rows)["rows_per_second"] for batch in BATCHES if batch <= tried_rows}
    batch = max(tried, key=lambda n: tried[n])
    exact = [run("ours", kind="float32"), run("peer", "--batch", str(batch), kind="float32")]
    equal = sum(a == b for a, b in zip(*(side["answers"] for side in exact), strict=True))
    if equal < rows * 0.99:  # two likeliest tokens as good as equal may change places by rounding; more than that is another computation
        raise RunError(f"{name}: the sides give the same answer to {equal} of {rows} prompts in float32, so their speeds do not compare")
    taken: list[dict[str, dict[str, Any]]] = []
    for number in range(rounds):
        calls = {
            "ours": lambda: run("ours"),
            "whole": lambda: run("ours", "--whole", str(test)),
            "peer": lambda: run("peer", "--batch", str(batch)),
        }
        sides = list(calls) if number % 2 == 0 else list(reversed(calls))
        taken.append({side: {k: v for k, v in calls[side]().items() if k not in ("answers", "labels", "references")} for side in sides})
    rates = {side: median(t[side]["rows_per_second"] for t in taken) for side in ("ours", "whole", "peer")}
    ratios = {side: [t[side]["rows_per_second"] / t["peer"]["rows_per_second"] for t in taken] for side in ("ours", "whole")}
    return {
        "name": name,
        "rows": rows,
        "dtype": dtype,
        "new_tokens": NEW_TOKENS,
        "mean_answer_tokens": sum(len(a) for a in exact[0]["answers"]) / rows,
        "equal_answers_in_float32": equal,
        "peer_batch": batch,
        "peer_tried": tried,
        "rows_per_second": rates,
        "peak_memory_bytes": {side: median(t[side]["peak_memory_bytes"] for t in taken) for side in rates},
        "ratio": {side: {"of_medians": rates[side] / rates["peer"], "low": min(r), "high": max(r)} for side, r in ratios.items()},
        "rounds": taken,
    }


def table(measured: list[dict[str, Any]]) -> list[str]:
    """The section in Markdown, line by line."""
    if not measured:
        return []
    first = measured[0]
    lines = [
        "",
        "## Evaluation",
        "",
        f"Greedy answers to {first['rows']} held-out headlines, at most {first['new_tokens']} new tokens, {first['dtype']}; the peer is "
        "transformers' generate on batches padded on the left. Of Tunery, in the second place, all that a report needs: answers, the "
        "likelihood of the right answer and of both labels.",
        "",
        "| model | Tunery: answers; all | peer, its best batch | ratio of answers | ratio of all | same answers in float32 | peak memory (ours, peer) |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in measured:
        rate, peak = m["rows_per_second"], m["peak_memory_bytes"]
        ratio = [f"**{r['of_medians']:.2f}** ({r['low']:.2f}–{r['high']:.2f})" for r in (m["ratio"]["ours"], m["ratio"]["whole"])]
        lines.append(
            f"| {m['name']} ({m['mean_answer_tokens']:.1f} tokens an answer) | {rate['ours']:.1f}; {rate['whole']:.1f} rows/s "
            f"| {rate['peer']:.2f} rows/s (batch {m['peer_batch']}) | {ratio[0]} | {ratio[1]} "
            f"| {m['equal_answers_in_float32']} of {m['rows']} | {peak['ours'] / 1e9:.2f}, {peak['peer'] / 1e9:.2f} GB |"
        )
    return lines


def prompts(work: Path, model: Path, data: Path, rows: int) -> Path:
    """The file with the prompts of the test rows, as both sides are given them."""
    from tunery.data.render import Renderer
    from tunery.data.rows import read_rows
    from tunery.models.load import load_tokenizer

    renderer = Renderer(load_tokenizer(model))
    asked = [renderer.prompt(row).ids for row in list(read_rows(str(data / "test.jsonl")))[:rows]]
    file = work / "prompts.json"
    file.write_text(json.dumps({"prompts": asked, "stop_ids": list(renderer.stop_ids), "new_tokens": NEW_TOKENS}))
    return file


def _trained(work: Path, data: Path, rows: int) -> Path:
    """A merged model that learned the form of the answer from some headlines."""
    import tunery

    say(f"training on {rows} headlines")
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
    (work / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    recipe = {
        "model": MODEL,
        "task": "chat",
        "data": {"train": str(work / "train.jsonl")},
        "method": {"name": "lora", "rank": 16, "alpha": 32},
        "train": {"epochs": 1, "rows_per_step": 16, "learning_rate": 5e-4, "seed": 0},
        "export": ["merged"],
    }
    result = tunery.finetune(recipe, run=work / "run")
    return Path(result.path) / "merged"


def _call(command: list[str], peer: bool) -> str:
    """The standard output of a command. Raises RunError with the end of what it wrote to standard error."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **({"PYTHONPATH": ""} if peer else {})}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise RunError(f"{' '.join(command[1:3])} failed with code {done.returncode}:\n{tail}")
    return done.stdout


def main() -> None:
    from run import peer_python

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (default 3)")
    parser.add_argument("--quick", action="store_true", help="few rows and one round; its rates mean nothing")
    args = parser.parse_args()
    try:
        data = Path(_call([sys.executable, str(ROOT / "examples/quickstart/fetch.py")], False).strip().splitlines()[-1])
        measured = section(local_folder(MODEL, say), data, peer_python(), 1 if args.quick else args.rounds, args.quick)
    except TuneryError as e:
        print(f"bench: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    print("\n".join(table(measured)))
    print(json.dumps([{k: v for k, v in m.items() if k != "rounds"} for m in measured]))


if __name__ == "__main__":
    main()
