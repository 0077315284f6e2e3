"""How long after `tunery train` the first step begins, on 2,000 headlines, and where that time goes; writes bench/results/startup.json.

    python bench/startup.py
    python bench/startup.py --times 9

Each time is a fresh command with nothing tokenised yet, but with the model converted and its hash known, as an earlier use leaves them. It is
taken until the first line of metrics.jsonl, less the seconds that this line says the step took; then the command is ended. One more
command runs to its end with `--profile`, which tells the stages.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tunery.doctor import examine
from tunery.profile import record
from tunery.run import Run, write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "startup.json"
MODEL = "smollm2-135m"
ROWS = 2000
REACH = 8.0
"""Seconds until the first step that a small recipe is to need at most."""
LONGEST = 600.0
"""Seconds after which a command counts as stuck, before its first step or after it."""
LOOK = 0.005
"""Seconds between two looks for the first step."""


def write_recipe(where: Path) -> Path:
    """A small recipe over the first 2,000 of the quickstart's headlines; without test rows, since they are read before the first step."""
    import yaml

    fetch = [sys.executable, str(ROOT / "examples" / "quickstart" / "fetch.py")]
    data = Path(subprocess.run(fetch, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1])
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]
    if len(lines) < ROWS:
        raise SystemExit(f"{data}: {ROWS} headlines are needed and there are {len(lines)}; delete the folder and run again")
    (where / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    recipe = {"model": MODEL, "data": {"train": "train.jsonl"}, "method": "lora", "train": {"rows_per_step": 16, "max_steps": 3}}
    (where / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return where / "recipe.yaml"


class Command:
    """`tunery train` in a process of its own, nothing tokenised yet; as a context it is ended on the way out, however that is."""

    def __init__(self, recipe: Path, run: Path, *words: str) -> None:
        cache = recipe.parent / "cache"
        shutil.rmtree(cache / "tokenised", ignore_errors=True)
        self.run, self.log = Run(run), run.with_suffix(".log")
        code = "from tunery.cli.main import run; run()"  # what the installed command does
        command = [sys.executable, "-c", code, "train", str(recipe), "--run", str(run), *words]
        with self.log.open("wb") as log:
            self.started = time.time()
            environment = {**os.environ, "TUNERY_CACHE": str(cache)}
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def first_step(self) -> float:
        """Seconds from the command to the begin of its first step. Raises SystemExit when it ends before that."""
        while time.time() - self.started < LONGEST:
            if self.run.metrics_file.is_file() and (lines := self.run.metrics()):
                return self.run.metrics_file.stat().st_mtime - self.started - float(lines[0]["seconds"])
            if self.process.poll() is not None:
                break
            time.sleep(LOOK)
        raise SystemExit(f"the command made no step:\n{self.log.read_text(encoding='utf-8')[-2000:]}")

    def stages(self) -> dict[str, float]:
        """Seconds of the stages up to the first step, from the profile of a command that ran to its end."""
        if self.process.wait(LONGEST):
            raise SystemExit(f"the command failed:\n{self.log.read_text(encoding='utf-8')[-2000:]}")
        profile = record.read(self.run)
        names = {"start": "imports before the job", "prepare": "tokenising", "load": "loading the model"}
        found = {words: profile["stages"][name]["seconds"] for name, words in names.items()}
        return {**found, "trial of the largest batch": profile["training"]["trial"]["seconds"]}


def measure(times: int) -> dict[str, Any]:
    """`{"seconds": each time, "median_seconds", "stages": seconds of each, "machine", …}`."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(temporary)
        recipe = write_recipe(where)
        with Command(recipe, where / "warm") as command:  # the model converted and hashed, files in memory, bytecode written
            command.first_step()
        seconds = []
        for n in range(times):
            with Command(recipe, where / f"run{n}") as command:
                seconds.append(command.first_step())
            print(f"{seconds[-1]:.2f} s", file=sys.stderr, flush=True)
        with Command(recipe, where / "profiled", "--profile") as command:
            whole, stages = command.first_step(), command.stages()
    stages["between them (imports too)"] = whole - sum(stages.values())
    machine = examine()
    return {
        "seconds": [round(s, 2) for s in seconds],
        "median_seconds": round(median(seconds), 2),
        "reach_seconds": REACH,
        "stages": {name: round(s, 2) for name, s in stages.items()},
        "rows": ROWS,
        "model": MODEL,
        "load_before": load,
        "machine": {k: machine[k] for k in ("python", "platform", "cpu", "memory", "gpus")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="how often the command is timed (default 5)")
    args = parser.parse_args()
    if args.times < 1:
        parser.error("--times is at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the command that runs is ended too
    found = measure(args.times)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS, json.dumps(found, indent=2) + "\n")
    spread = f"{min(found['seconds']):.2f} to {max(found['seconds']):.2f}"
    print(f"first step after {found['median_seconds']:.2f} s (median of {args.times}, {spread}; to reach: {REACH:.0f} s)")
    for name, seconds in found["stages"].items():
        print(f"  {seconds:6.2f} s  {name}")


if __name__ == "__main__":
    main()
