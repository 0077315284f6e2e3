"""Tunery's side of the benchmark: the real training loop in a temporary run. Prints one JSON object."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    tokens: np.ndarray
    weights: np.ndarray


class Rows:
    """The given rows, numbered so that the loop, which shuffles, meets them in the given order."""

    def __init__(self, given: list[Row], steps: list[np.ndarray]) -> None:
        self._rows = [row for _, row in sorted(zip(np.concatenate(steps).tolist(), given, strict=True), key=lambda pair: pair[0])]
        self.lengths = np.array([len(r.tokens) for r in self._rows])
        self.supervised = np.array([float(r.weights.sum()) for r in self._rows])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


def _nf4_bytes(model: Any) -> dict[str, int] | None:
    """Of a quantised base: what its four-bit weights take with their scales, and what they would in bfloat16."""
    sizes = [(m.nbytes, m.in_features * m.out_features * 2) for m in model.modules() if type(m).__name__ == "Nf4Linear"]
    return {"bytes": sum(n for n, _ in sizes), "bfloat16_bytes": sum(n for _, n in sizes)} if sizes else None


def product_operations(model: Any, learner: Any, rows: list[Row]) -> int:
    """Floating point operations of the matrix products and the attention that a step of these rows really makes."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from tunery.profile.spent import flops_of
    from tunery.train import loop

    class Count(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.made += flops_of(func._schema.name, [tuple(a.shape) if isinstance(a, torch.Tensor) else () for a in args])
            return func(*args, **(kwargs or {}))

    model.train()
    with Count() as count:
        loop.accumulate(model, learner, rows, float(sum(row.weights[1:].sum() for row in rows)))
    return count.made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--rows-per-step", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="timed steps; one more comes before them")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    parser.add_argument("--method", default="lora", help="another one starts as it does in a run, not from the adapter")
    parser.add_argument("--save", type=Path, help="a folder for the trained adapter")
    args = parser.parse_args()

    import torch

    from tunery import methods, tasks
    from tunery.kernels.fused import fuse
    from tunery.machine import peak_memory
    from tunery.models.load import load_model
    from tunery.progress import Quiet
    from tunery.run import Run
    from tunery.train import attention, learners, loop
    from tunery.train.steps import plan_steps

    count = args.rows_per_step * (args.steps + 1)
    content = json.loads(args.rows.read_text())[:count]
    given = [Row(np.array(r["input_ids"], dtype=np.int32), np.array(r["completion_mask"], dtype=np.float32)) for r in content]
    steps = plan_steps(np.zeros(count), epochs=1, seed=0, rows_per_step=args.rows_per_step)
    rows = Rows(given, steps)

    method, learner = methods.get(args.method), learners.get(tasks.get("chat"))  # the task `text` has the same loss
    written = json.loads((args.adapter / "adapter_config.json").read_text())
    options = method.Options.model_validate({"rank": written["r"], "alpha": written["lora_alpha"]})
    model = fuse(load_model(args.model, args.dtype, attention=attention.register()))
    model = method.attach(model, options, 0)
    if args.method == "lora":
        method.load(model, args.adapter)
    settings = loop.Settings(args.learning_rate, rows_per_step=args.rows_per_step, schedule="constant", warmup=0.0, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        loop.train(run, model, method, options, learner, rows, settings, Quiet())
        lines = run.metrics()
    peak = peak_memory()
    if args.save:
        method.save(model, options, args.save, str(args.model))
    seconds = lines[-1]["seconds"] - lines[0]["seconds"]
    result = {
        "rows_per_second": args.steps * args.rows_per_step / seconds,
        "tokens_per_second": sum(line["tokens"] for line in lines[1:]) / seconds,
        "seconds": seconds,
        "peak_memory_bytes": peak,
        "product_operations_per_second": product_operations(model, learner, given[: args.rows_per_step])
        / sum(line["tokens"] for line in lines[:1])
        * sum(line["tokens"] for line in lines[1:])
        / seconds,
        "quantised": _nf4_bytes(model),
        "losses": [line["loss"] for line in lines],
        "supervised_tokens": sum(line["supervised_tokens"] for line in lines),
        "threads": torch.get_num_threads(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
