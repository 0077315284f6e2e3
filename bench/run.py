"""Tunery's training step beside trl.SFTTrainer with PEFT, on this machine's CPU.

    make bench                                        # or: python bench/run.py
    python bench/run.py --workloads headlines --best-rows
    python bench/run.py --quick                       # do both sides work? some minutes, and its rates mean nothing

Both sides get the same weights, starting adapter, rows, order, rank, targets, optimiser and learning rate, in the number format that
`train.precision: auto` chooses here: bf16 where the processor has instructions for it. First they must agree on the loss in float32. Then the peer's layouts are tried and the fastest is kept. Then the sides take turns, each time in a fresh
process. The first step of a process is not counted. The peer lives in an environment of its own, bench/.peer. Then Tunery's methods
are measured beside each other (bench/methods.py), and evaluation beside transformers' generate (bench/evaluate.py).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import evaluate
import methods as methods_section
import quality

from tunery.doctor import examine
from tunery.errors import InputError, RunError, TuneryError
from tunery.models.source import local_folder
from tunery.plan import calibration
from tunery.run import sha256_of, write_text
from tunery.train import precision

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEER = HERE / ".peer"
MODEL = "smollm2-135m"
LEARNING_RATE = 5e-4
FLOAT32_TOLERANCE = 1e-3
"""Relative, between the losses of the two sides; rounding alone was measured below 1e-5."""


@dataclass(frozen=True)
class Workload:
    name: str
    rows_per_step: int
    steps: int
    choices: tuple[int, ...]
    """Rows a step that --best-rows tries; one alone where the length of the rows fills a pack and more of them make no difference."""

    def with_rows(self, rows: int) -> Workload:
        """The same number of rows in steps of another size, at least two steps."""
        return replace(self, rows_per_step=rows, steps=max(2, self.steps * self.rows_per_step // rows))

    @property
    def rows(self) -> int:
        return self.rows_per_step * (self.steps + 1)


WORKLOADS = {
    w.name: w
    for w in (
        Workload("headlines", 16, 8, (16, 64)),
        Workload("dense", 4, 3, (4,)),
        Workload("chats", 8, 2, (8,)),
    )
}


SECTIONS = ("quality", "methods", "evaluate")


class Killed(RunError):
    """A process that the system killed: it needed more memory than there is."""


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {message}", file=sys.stderr, flush=True)


def call(what: str, command: list[str | Path], env: dict[str, str] | None = None) -> str:
    """The standard output of a command. Raises RunError with the end of what it wrote to standard error, Killed where it was killed."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **(env or {})})
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        kind = Killed if done.returncode in (-9, 137) else RunError
        raise kind(f"{what} failed with code {done.returncode}:\n{tail}")
    return done.stdout


def peer_python() -> Path:
    """The peer's interpreter, its environment made or renewed when the constraints are not those that it was made with."""
    python, ready = PEER / "bin" / "python", PEER / ".ready"
    pins = [ROOT / "constraints.txt", HERE / "constraints-peer.txt"]
    state = " ".join([*map(sha256_of, pins), sys.version.split()[0]])
    if ready.is_file() and ready.read_text() == state:
        return python
    say(f"installing the peer into {PEER.relative_to(ROOT)}")
    shutil.rmtree(PEER, ignore_errors=True)
    try:
        call("making the environment", [sys.executable, "-m", "venv", PEER])
        pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", pins[0], "-c", pins[1]]
        call("pip install", [*pip, "trl", "torch", "transformers", "peft", "datasets", "accelerate"])
    except RunError as e:
        raise RunError(
            f"the peer (TRL and PEFT) cannot be installed, so there is nothing to compare with; mend this and run again: {e}"
        ) from None
    ready.write_text(state)
    return python


class Sides:
    """Runs one side in a fresh process."""

    def __init__(self, model: Path, work: Path, peer: Path, dtype: str) -> None:
        self.model, self.work, self.peer, self.dtype = model, work, peer, dtype

    def run(self, side: str, w: Workload, *options: str) -> dict[str, Any]:
        script: list[str | Path] = [sys.executable, HERE / "ours.py"] if side == "ours" else [self.peer, HERE / "peer_trl.py"]
        numbers = ["--rows-per-step", str(w.rows_per_step), "--steps", str(w.steps), "--learning-rate", str(LEARNING_RATE)]
        files: list[str | Path] = ["--model", self.model, "--adapter", self.work / "adapter", "--rows", self.work / f"{w.name}.json"]
        env = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **({"PYTHONPATH": ""} if side == "peer" else {})}
        if "--dtype" not in options:
            options = ("--dtype", self.dtype, *options)
        result: dict[str, Any] = json.loads(call(f"{w.name}: {side}", [*script, *files, *numbers, *options], env).splitlines()[-1])
        say(f"  {side:5} {result['rows_per_second']:8.2f} rows/s {result['tokens_per_second']:8.0f} tokens/s  {' '.join(options)}")
        return result


def agreement(sides: Sides, w: Workload) -> dict[str, Any]:
    """Two steps of two rows in float32: the same tokens learned, the same losses. Raises RunError where that is not so."""
    say(f"{w.name}: do both sides do the same work? (float32)")
    small = replace(w, rows_per_step=2, steps=1)
    ours = sides.run("ours", small, "--dtype", "float32")
    found: dict[str, Any] = {"supervised_tokens": {"ours": ours["supervised_tokens"]}, "losses": {"ours": ours["losses"]}}
    for layout in ("padding", "packing"):
        peer = sides.run("peer", small, "--dtype", "float32", "--layout", layout, "--batch", "2")
        theirs = {name: version for name, version in peer["versions"].items() if name != "trl"}
        if ours["versions"] != theirs:
            raise RunError(
                f"the two environments differ: {ours['versions']} and {theirs}; install constraints.txt here (`make clean setup`)"
            )
        found["supervised_tokens"][layout], found["losses"][layout] = peer["supervised_tokens"], peer["losses"]
        found[f"{layout}_keeps_rows_apart"] = peer["rows_apart"]
        apart = max(abs(a - b) / abs(b) for a, b in zip(ours["losses"], peer["losses"], strict=True))
        if peer["rows_apart"] and (apart > FLOAT32_TOLERANCE or ours["supervised_tokens"] != peer["supervised_tokens"]):
            raise RunError(f"{w.name}: the sides do not do the same work, so their speeds do not compare: {found}")
        say(f"  float32 losses differ by {apart:.1e} (relative); the peer's {layout} keeps rows apart: {peer['rows_apart']}")
    return found


def best_of_peer(sides: Sides, w: Workload, quick: bool) -> tuple[list[str], list[dict[str, Any]]]:
    """The options of the peer's fastest way that keeps rows apart, and all that was tried."""
    n = w.rows_per_step
    batches = [n] if quick else sorted(b for b in {1, max(1, n // 4), n} if n % b == 0)
    ways = [["--layout", layout, "--batch", str(b)] for layout in ("padding", "packing") for b in batches if layout == "padding" or b > 1]
    short, tried = replace(w, steps=1 if quick or len(w.choices) == 1 else 2), []
    say(f"{w.name}: which way is the peer fastest?")
    for way in ways:
        tried.append(_attempt(sides, short, way))
    if not quick and sides.dtype == "bfloat16":
        tried.append(_attempt(sides, short, [*_fastest(tried)["options"], "--no-autocast"]))
    return _fastest(tried)["options"], tried


def _attempt(sides: Sides, w: Workload, way: list[str]) -> dict[str, Any]:
    """The peer's result that way; a way for which there is not the memory is no way here, and is noted."""
    try:
        return {"options": way, **sides.run("peer", w, *way)}
    except Killed:
        say(f"  peer  out of memory  {' '.join(way)}")
        return {"options": way, "out_of_memory": True}


def best_rows(sides: Sides, w: Workload, way: list[str]) -> tuple[int, int, list[str]]:
    """Rows a step at which each side is fastest: (ours, peer, the peer's options with the batch that goes with it)."""
    say(f"{w.name}: how many rows a step is each side fastest with?")
    at, ours, peer = way.index("--batch") + 1, [], []
    for n in w.choices:
        some = replace(w.with_rows(n), steps=2)
        ours.append({"rows": n, **sides.run("ours", some)})
        for batch in sorted({int(way[at]), n}):
            if n % batch == 0:
                options = [*way[:at], str(batch), *way[at + 1 :]]
                peer.append({"rows": n, **_attempt(sides, some, options)})
    found = _fastest(peer)
    return _fastest(ours)["rows"], found["rows"], found["options"]


def _fastest(results: list[dict[str, Any]]) -> dict[str, Any]:
    able = [r for r in results if r.get("rows_apart", True) and not r.get("out_of_memory")]
    if not able:
        raise RunError("there is not the memory for any of the peer's ways on this machine, so there is nothing to compare with")
    return max(able, key=lambda r: r["tokens_per_second"])


def measure(sides: Sides, name: str, ours: Workload, peer: Workload, way: list[str], rounds: int) -> dict[str, Any]:
    """The sides in turn, `rounds` times; who begins changes from round to round, so that a drift of the machine favours none."""
    taken: list[dict[str, dict[str, Any]]] = []
    for number in range(rounds):
        say(f"{name}: round {number + 1} of {rounds}")
        pair = {}
        for side in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
            pair[side] = sides.run("ours", ours) if side == "ours" else sides.run("peer", peer, *way)
        taken.append(pair)
    unit = "tokens_per_second"  # the same ratio as rows, and fair where the sides' rows a step differ
    medians = {
        side: {key: median(pair[side][key] for pair in taken) for key in ("rows_per_second", unit, "peak_memory_bytes")}
        for side in ("ours", "peer")
    }
    ratios = [pair["ours"][unit] / pair["peer"][unit] for pair in taken]
    return {
        "name": name,
        "rows_per_step": {"ours": ours.rows_per_step, "peer": peer.rows_per_step},
        "steps": {"ours": ours.steps, "peer": peer.steps},
        "peer_options": way,
        "medians": medians,
        "ratio": {"of_medians": medians["ours"][unit] / medians["peer"][unit], "low": min(ratios), "high": max(ratios)},
        "rounds": taken,
    }


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    cpu, versions = report["machine"]["cpu"], report["versions"]
    bf16 = "amx_bf16" if cpu["amx_bf16"] else "avx512_bf16" if cpu["avx512_bf16"] else "no bf16 instructions"
    lines = [
        f"# Training speed, {report['date']}",
        "",
        f"{cpu['name']}, {cpu['cores']} cores ({bf16}), {report['machine']['memory']['total_bytes'] / 1e9:.0f} GB; "
        f"{report['threads']} threads a side; load before the start: {report['load_before']:.1f}. Model {MODEL}, LoRA rank 16 on all linear layers, {report['dtype']}, AdamW.",
        f"Peer: trl {versions['trl']} + peft {versions['peft']}; both on torch {versions['torch']}, transformers {versions['transformers']}.",
        "Medians; in brackets the lowest and highest ratio of a round. First loss: of the first step.",
        "",
        "| workload | rows a step (ours, peer) | Tunery | TRL + PEFT, its best way | ratio | peak memory (ours, peer) | first loss (ours, peer) |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in report["measured"]:
        ours, peer = m["medians"]["ours"], m["medians"]["peer"]
        speed = [f"{s['rows_per_second']:.2f} rows/s, {s['tokens_per_second']:.0f} tokens/s" for s in (ours, peer)]
        first = [f"{m['rounds'][0][side]['losses'][0]:.4f}" for side in ("ours", "peer")]
        ratio = f"**{m['ratio']['of_medians']:.2f}** ({m['ratio']['low']:.2f}–{m['ratio']['high']:.2f})"
        way = " ".join(o.removeprefix("--") for o in m["peer_options"])
        peaks = f"{ours['peak_memory_bytes'] / 1e9:.2f}, {peer['peak_memory_bytes'] / 1e9:.2f} GB"
        rows = f"{m['rows_per_step']['ours']}, {m['rows_per_step']['peer']}"
        lines.append(f"| {m['name']} | {rows} | {speed[0]} | {speed[1]} ({way}) | {ratio} | {peaks} | {', '.join(first)} |")
    lines += ["", "Both sides learned the same tokens, and their losses agreed in float32 before anything was timed:", ""]
    for name, a in report["agreement"].items():
        losses = "; ".join(f"{side} {', '.join(f'{x:.6f}' for x in values)}" for side, values in a["losses"].items())
        apart = "keeps rows apart" if a["packing_keeps_rows_apart"] else "lets rows see each other, so it was not used"
        lines.append(f"- {name}: {losses}. The peer's packing {apart}.")
    lines += quality.table(report["quality"]) + methods_section.table(report["methods"]) + evaluate.table(report["evaluation"])
    return "\n".join(lines) + "\n"


def _quality(sides: Sides, work: Path, data: Path, way: list[str], quick: bool) -> dict[str, Any]:
    """Both sides' adapters after the same steps, judged by the same code."""
    w = replace(WORKLOADS["headlines"], rows_per_step=quality.ROWS, steps=2 if quick else quality.STEPS - 1)
    say(f"headlines: {w.steps + 1} steps on both sides, and what the adapters are worth")
    prompts = evaluate.prompts(work, sides.model, data, 32 if quick else evaluate.ROWS)

    def train(side: str, folder: Path) -> dict[str, Any]:
        return sides.run(side, w, "--save", str(folder), *(way if side == "peer" else []))

    def ask(folder: Path) -> dict[str, Any]:
        files: list[str | Path] = ["--model", sides.model, "--adapter", folder, "--prompts", prompts, "--whole", data / "test.jsonl"]
        command: list[str | Path] = [sys.executable, HERE / "ours_evaluate.py", *files, "--dtype", sides.dtype]
        answer: dict[str, Any] = json.loads(call("judging", command).splitlines()[-1])
        return answer

    return quality.section(train, ask, work)


def bench(args: argparse.Namespace) -> None:
    load = os.getloadavg()[0]
    machine = examine()
    if load > 0.5:
        say(f"other work is running here (load {load:.1f}); rates will be too low and their ratio uncertain")
    chosen = [w for name, w in WORKLOADS.items() if name in args.workloads]
    if args.quick:
        chosen = [replace(w, rows_per_step=2, steps=1, choices=(2, 4)) for w in chosen]
    chosen = [replace(w, steps=args.steps or w.steps) for w in chosen]
    rounds = 1 if args.quick else args.rounds
    model = local_folder(MODEL, say)
    dtype = precision.choose("auto", "cpu")[0]
    data = Path(call("fetching the headlines", [sys.executable, ROOT / "examples/quickstart/fetch.py"]).strip().splitlines()[-1])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sides = Sides(model, work, peer_python(), dtype)
        counts = {
            w.name: max(
                w.rows,
                quality.ROWS * quality.STEPS * (w.name == "headlines" and "quality" in args.workloads),
                4,
                *([3 * n for n in w.choices] + [w.with_rows(n).rows for n in w.choices]) * args.best_rows,
            )
            for w in chosen
        }
        rows = [x for name, count in counts.items() for x in ("--rows", f"{name}={count}")]
        call("preparing rows", [sys.executable, HERE / "prepare.py", "--out", work, "--model", model, "--data", data, *rows])
        agreed, tried, measured, way_of = {}, {}, [], {}
        for w in chosen:
            agreed[w.name] = agreement(sides, w)
            way, tried[w.name] = best_of_peer(sides, w, args.quick)
            way_of[w.name] = way
            measured.append(measure(sides, w.name, w, w, way, rounds))
            if args.best_rows and len(w.choices) > 1:
                our_rows, peer_rows, way = best_rows(sides, w, way)
                best = w.with_rows(our_rows), w.with_rows(peer_rows)
                measured.append(measure(sides, f"{w.name}, best rows a step", *best, way, rounds))
        judged = (
            _quality(sides, work, data, way_of["headlines"], args.quick) if "quality" in args.workloads and "headlines" in way_of else None
        )
        methods = []
        for w in chosen if "methods" in args.workloads else []:
            say(f"{w.name}: methods beside each other")
            ours = partial(sides.run, "ours", w, "--method")
            methods.append(methods_section.section(ours, w.name, min(rounds, 2), calibration.rates().rate["matrix"][dtype]))
        evaluation = evaluate.section(model, data, sides.peer, rounds, args.quick) if "evaluate" in args.workloads else []
    one = measured[0]["rounds"][0]
    report = {
        "schema": 1,
        "date": time.strftime("%Y-%m-%d"),
        "machine": {k: machine[k] for k in ("python", "platform", "cpu", "memory", "gpus")},
        "load_before": load,
        "threads": one["ours"]["threads"],
        "dtype": dtype,
        "versions": {"tunery": machine["tunery"], **one["peer"]["versions"]},
        "measured": measured,
        "agreement": agreed,
        "peer_tried": tried,
        "quality": judged,
        "methods": methods,
        "evaluation": evaluation,
    }
    print(table(report))
    target = args.out or (None if args.quick else HERE / "results")
    if target:
        every = set(args.workloads) >= {*WORKLOADS, *SECTIONS}
        part = "" if every else f"-{'-'.join(args.workloads)}"
        name = f"{report['date']}-{re.sub(r'[^a-z0-9]+', '-', machine['cpu']['name'].lower()).strip('-')}{part}"
        write_text(target / f"{name}.json", json.dumps(report, indent=2) + "\n")
        write_text(target / f"{name}.md", table(report))
        say(f"written: {target / name}.json and .md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workloads", type=lambda text: text.split(","), default=[*WORKLOADS, *SECTIONS], help=f"of {','.join((*WORKLOADS, *SECTIONS))}"
    )
    parser.add_argument("--steps", type=int, help="timed steps of a process (default: by workload)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (default 3)")
    parser.add_argument("--best-rows", action="store_true", help="measure also with the rows a step that suit each side best")
    parser.add_argument("--quick", action="store_true", help="one round of one step of two rows; writes nothing without --out")
    parser.add_argument("--out", type=Path, help="folder for the results (default bench/results)")
    args = parser.parse_args()
    try:
        unknown = [name for name in args.workloads if name not in (*WORKLOADS, *SECTIONS)]
        if not set(args.workloads) & set(WORKLOADS):
            raise InputError(f"name one of {', '.join(WORKLOADS)} too; evaluation alone is measured by `python bench/evaluate.py`")
        if unknown or args.rounds < 1 or (args.steps is not None and args.steps < 1):
            raise InputError(f"workloads are {', '.join((*WORKLOADS, *SECTIONS))}; steps and rounds are at least 1")
        bench(args)
    except TuneryError as e:
        print(f"bench: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
