"""What a process holds of the weights and the optimiser's state, measured beside the ZeRO paper's formula; writes docs/sharding.md.

    python bench/sharding.py                              # print the tables
    python bench/sharding.py --write                      # and put them into docs/sharding.md
    python bench/sharding.py --model FOLDER --processes 2 --stages zero2,zero3 --methods lora

All on this machine's CPU, in float32. For each number of processes these are started once; every stage with every method then loads the
model, makes one step, and each process adds up the memory under its tensors. The default model is random: values do not change bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunery.errors import RunError
from tunery.models.source import local_folder
from tunery.run import write_text
from tunery.sharding import MEETING

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "sharding.md"
STAGES, METHODS, PROCESSES = ("ddp", "zero1", "zero2", "zero3", "fsdp"), ("full", "lora"), (1, 2, 4)
WHOLE = {"config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}
"""DeepSpeed's ZeRO-3 keeps weights of fewer than 100,000 values whole in every process, which the formula does not know."""

SHAPE = {"vocab_size": 16384, "hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 8, "num_attention_heads": 5}

TEXT = """\
# What a process holds

Written by `python bench/sharding.py --write`; do not edit.

Bytes of one process after a step, in float32, of {model}: the memory under its tensors, added up in each process, the greatest of them shown.
The formula is that of Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 3 and figure 1, for
Ψ weights, of which Ψₜ are trained, on N processes. In float32 a weight takes 4 bytes and AdamW's two moments 8; DeepSpeed keeps beside them
the copy of the trained weights that it updates, 12 in all, where torch updates the weights themselves:

| sharding | weights | optimiser's state |
| --- | --- | --- |
| `ddp` | 4 Ψ | 8 Ψₜ |
| `zero1`, `zero2` | 4 Ψ | 12 Ψₜ / N |
| `zero3` | 4 Ψ / N | 12 Ψₜ / N |
| `fsdp` | 4 Ψ / N | 8 Ψₜ / N |

Measured is a little more than that: a step's counter for each tensor, and filling where a tensor does not divide evenly. `zero2` also divides the
gradients, 4 Ψₜ bytes, and `zero1` does not; they are gone after a step and not counted here. ZeRO-3 is measured with
`stage3_param_persistence_threshold: 0`; DeepSpeed's default keeps weights of fewer than 100,000 values whole in every process, such as norms and thin adapters.
"""


def formula(stage: str, weights: int, trained: int, processes: int) -> tuple[float, float]:
    """The paper's bytes of one process: of the weights, and of the optimiser's state."""
    divided = processes if stage in ("zero3", "fsdp") else 1
    state = {"ddp": 8.0, "fsdp": 8 / processes}.get(stage, 12 / processes)
    return 4 * weights / divided, state * trained


def random_llama(folder: Path) -> str:
    """The default model, made in `folder`; returns it as text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)).save_pretrained(folder)
    return str(folder)


def measure(model: str, stages: Sequence[str], methods: Sequence[str], processes: int) -> list[dict[str, Any]]:
    """Start the processes: one dictionary for each stage and method, with `weights`, `trained` and what each process holds. Raises RunError."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        job = json.dumps({"model": model, "stages": list(stages), "methods": list(methods), "out": str(out)})
        shared = {**os.environ, MEETING: f"{folder}/meeting", "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
        if sys.platform == "linux":
            shared["GLOO_SOCKET_IFNAME"] = "lo"
        started = []
        for rank in range(processes):
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with open(f"{folder}/log-{rank}.txt", "w") as log:
                command = [sys.executable, __file__, "--worker", job]
                started.append(subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT))
        try:
            codes = [process.wait() for process in started]
        finally:
            for process in started:
                process.kill()
        if any(codes):
            failed = next(rank for rank, code in enumerate(codes) if code)
            log_text = Path(f"{folder}/log-{failed}.txt").read_text()
            raise RunError(f"process {failed} of {processes} ended with {codes[failed]}: {log_text[-2000:]}")
        found: list[dict[str, Any]] = json.loads(out.read_text())
    return found


def work(job: dict[str, Any]) -> None:
    """One of the processes."""
    import torch

    from tunery.sharding import _processes

    torch.set_num_threads(1)
    _processes.meet()
    found = []
    for method in job["methods"]:
        for stage in job["stages"]:
            print(f"{method} {stage}", flush=True)
            found.append(_held(job["model"], stage, method))
    if _processes.rank() == 0:
        write_text(Path(job["out"]), json.dumps(found))
    _processes.part()


def _held(folder: str, stage: str, name: str) -> dict[str, Any]:
    import numpy as np
    import torch

    from tunery import methods, sharding, tasks
    from tunery.models.load import load_model
    from tunery.recipe import Named
    from tunery.train import attention, learners, loop
    from tunery.train.objective import Objective

    chosen, options = sharding.of(Named(name=stage, options=WHOLE if stage == "zero3" else {}))
    method = methods.get(name)
    settings = loop.Settings(learning_rate=1e-5, rows_per_step=8)
    model = method.attach(load_model(Path(folder), attention=attention.register()), method.Options(), 0).train()
    weights = sum(p.numel() for p in model.parameters())
    learned = methods.trainable(model)
    trained = sum(p.numel() for p in learned.values())
    engine, learner = chosen.engine(options), learners.get(tasks.get("chat"), None, True)
    engine.shard(Objective(model, learner), model)
    engine.begin(loop._parameter_groups(method, model, method.Options(), methods.trainable(model), settings), 1e-5, 0.0, None)
    rows = _Rows(np.random.default_rng(0).integers(3, 400, (8, 16)).astype(np.int32))
    loop.gradient_of(engine, learner, model, rows, np.arange(len(rows)))
    engine.step()
    engine.clear()
    held = engine.held()
    every = [part.tolist() for part in engine.collected(torch.tensor([held.parameters, held.optimizer]))]
    return {"stage": stage, "method": name, "weights": weights, "trained": trained, "held": every}


class _Row:
    def __init__(self, tokens: Any) -> None:
        self.tokens, self.weights = tokens, (tokens >= 0).astype("float32")
        self.weights[0] = 0  # nothing comes before it


class _Rows(list[_Row]):
    """Rows of random tokens, all learned: what is computed does not change what is held."""

    def __init__(self, tokens: Any) -> None:
        import numpy as np

        super().__init__(_Row(row) for row in tokens)
        self.lengths = np.full(len(tokens), tokens.shape[1])
        self.supervised = self.lengths - 1.0


def tables(found: dict[int, list[dict[str, Any]]]) -> str:
    """A Markdown table for each method. found: what `measure` gave, by the number of processes."""
    blocks = []
    for method in dict.fromkeys(c["method"] for cases in found.values() for c in cases):
        lines = [["sharding", "processes", "weights", "formula", "state", "formula"], ["---", *["---:"] * 5]]
        cases = [(c, n) for n, of_n in found.items() for c in of_n if c["method"] == method]
        for c, n in sorted(cases, key=lambda case: (STAGES.index(case[0]["stage"]), case[1])):
            most = [max(part[k] for part in c["held"]) for k in range(2)]
            said = formula(c["stage"], c["weights"], c["trained"], n)
            lines.append([f"`{c['stage']}`", str(n), f"{most[0]:,}", f"{said[0]:,.0f}", f"{most[1]:,}", f"{said[1]:,.0f}"])
        weights, trained = cases[0][0]["weights"], cases[0][0]["trained"]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        blocks.append(f"## `{method}`: Ψ = {weights:,}, Ψₜ = {trained:,}\n\n{table}")
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a catalogue name, or a folder; a small random Llama unless given")
    parser.add_argument("--processes", default=",".join(map(str, PROCESSES)), help="how many, separated by commas")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(json.loads(given.worker))
        return
    stages, methods = given.stages.split(","), given.methods.split(",")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = str(local_folder(given.model)) if given.model else random_llama(Path(folder))
        for count in map(int, given.processes.split(",")):
            print(f"{count} processes …", file=sys.stderr, flush=True)
            found[count] = measure(model, stages, methods, count)
    text = tables(found)
    print(text, end="")
    if given.write:
        shape = ", ".join(f"{key} {value:,}" for key, value in SHAPE.items())
        write_text(PAGE, TEXT.format(model=given.model or f"a random Llama ({shape})") + "\n" + text)


if __name__ == "__main__":
    main()
