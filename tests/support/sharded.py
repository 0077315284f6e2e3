"""Training on tiny models in several processes that meet over a file: one start for many cases, since importing takes most of the time.

    results = start(folder, processes=2, cases=[{"name": "a", "stage": "zero2", "method": "lora", "model": "…"}])

Each case leaves a run folder, and what it measured in `<name>.json`; its gradients are in `<name>.gradients.safetensors`. A case may also
say `options` (the method's), `sharding` (its options), `train` (the loop's settings), `rows`, `dtype`, `gradients: false`, and `after`: the
folder of a finished run, whose last checkpoint but one it goes on from.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = ("ddp", "zero1", "zero2", "zero3", "fsdp")
ZERO = ("zero1", "zero2", "zero3")
METHODS = ("full", "lora", "dora")
WHOLE = {"config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}
"""DeepSpeed keeps small weights whole in ZeRO-3, and all of a tiny model's are small."""
DROPOUT = {"rank": 4, "dropout": 0.3}


def name_of(stage: str, method: str, kind: str = "exact") -> str:
    return f"{kind}-{stage}-{method}"


def case(model: Path, stage: str, method: str, kind: str = "exact", **more: Any) -> dict[str, Any]:
    options = {"sharding": WHOLE} if stage == "zero3" else {}
    return {"name": name_of(stage, method, kind), "stage": stage, "method": method, "model": str(model), **options, **more}


@dataclass(frozen=True)
class Measured:
    """What cases measured in some number of processes, and the folder with their runs and gradients."""

    folder: Path
    cases: Mapping[str, dict[str, Any]]


SUPPORT = Path(__file__).parent
SOURCE = SUPPORT.parents[1] / "src"


def begin(folder: Path, processes: int, cases: Sequence[dict[str, Any]]) -> list[subprocess.Popen[bytes]]:
    """Start the processes; their output is in `folder/log-<rank>.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(list(cases)))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SOURCE), str(SUPPORT)]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "TUNERY_MEETING": str(folder / "meeting"),
        "WORLD_SIZE": str(processes),
    }
    started = []
    for rank in range(processes):
        with (folder / f"log-{rank}.txt").open("wb") as log:
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, str(SUPPORT / "sharded.py"), str(folder)]
            started.append(subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT))
    return started


def finish(folder: Path, started: list[subprocess.Popen[bytes]], cases: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Wait for the processes; what each case measured, by its name."""
    try:
        codes = [process.wait(300) for process in started]
    finally:
        for process in started:
            process.kill()
    logs = "".join(f"--- {rank}\n" + (folder / f"log-{rank}.txt").read_text()[-3000:] for rank in range(len(started)))
    assert not any(codes), f"{codes}\n{logs}"
    return {case["name"]: json.loads((folder / f"{case['name']}.json").read_text()) for case in cases}


def start(folder: Path, processes: int, cases: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """All cases in `processes` processes; what each measured, by its name."""
    return finish(folder, begin(folder, processes, cases), cases)


def measure(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One case, in this process and those that it has met: its gradients, then a run."""
    import torch
    from rows import random_rows

    from tunery import methods, sharding, tasks
    from tunery.models.load import load_model
    from tunery.progress import Quiet
    from tunery.recipe import Named, from_mapping
    from tunery.run import Run
    from tunery.sharding import _processes
    from tunery.train import attention, learners, loop, parts
    from tunery.train.objective import Objective

    chosen, options = sharding.of(Named(name=case["stage"], options=case.get("sharding", {})))
    method = methods.get(case["method"])
    method_options = method.Options.model_validate(case.get("options", {}))
    rows, valid = random_rows(case.get("rows", 15)), random_rows(5, seed=9)
    settings = loop.Settings(**{"learning_rate": 1e-2, "rows_per_step": 4, "seed": 3, "checkpoint_every": 2, **case.get("train", {})})
    first = _processes.rank() == 0

    def prepared() -> Any:
        torch.manual_seed(0)
        model = load_model(Path(case["model"]), case.get("dtype", "float32"), attention=attention.register())
        model = method.attach(model, method_options, 3)
        generator = torch.Generator().manual_seed(1)
        for name, p in methods.trainable(model).items():
            if "lora_B" in name:  # zero at the start, so that A would have no gradient
                p.data.normal_(0, 0.05, generator=generator)
        return model

    found: dict[str, Any] = {}
    learner = learners.get(tasks.get("chat"), None, True)
    if case.get("gradients", True):
        model = prepared().train()
        engine = chosen.engine(options)
        engine.shard(Objective(model, learner, settings.autocast), model)
        groups = loop._parameter_groups(method, model, method_options, methods.trainable(model), settings)
        engine.begin(groups, 1e-2, 0.0, None)
        step = torch.arange(len(rows)).numpy()
        found["tokens"] = int(rows.lengths[parts.part_of(step, rows.lengths, engine.rank, engine.world)].sum())
        found["loss"] = loop.gradient_of(engine, learner, model, rows, step)
        gradients = engine.gradients()
        engine.step()
        engine.clear()
        held = engine.held()
        bytes_ = engine.collected(torch.tensor([held.parameters, held.optimizer]))
        found["held"] = [b.tolist() for b in bytes_]
        found["all_parameters"] = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
        found["trained"] = sum(g.numel() for g in gradients.values())
        if first:
            from safetensors.torch import save_file

            save_file({n: g.contiguous() for n, g in gradients.items()}, str(folder / f"{case['name']}.gradients.safetensors"))
        del model, engine
    run_folder = folder / case["name"]
    if first and "after" in case:
        interrupt(Path(case["after"]), run_folder)
    elif first:
        Run.create(run_folder, from_mapping({"model": case["model"], "data": {"train": "none.jsonl"}}))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    run = Run.open(run_folder)
    engine = chosen.engine(options)
    with_valid = valid if case.get("valid", True) else None
    loop.train(run, prepared(), method, method_options, learner, rows, settings, Quiet(), with_valid, "tiny", engine)
    found["metrics"] = [{k: v for k, v in line.items() if k != "seconds"} for line in run.metrics()]
    return found


def interrupt(whole: Path, copy: Path) -> None:
    """A copy of a finished run as it was at its last checkpoint but one."""
    shutil.copytree(whole, copy)
    newest = max((copy / "checkpoints").iterdir(), key=lambda p: int(p.name.removeprefix("step-")))
    shutil.rmtree(newest)


def main(folder: Path) -> None:
    import torch

    from tunery.sharding import _processes

    torch.set_num_threads(1)
    _processes.meet()
    for case in json.loads((folder / "cases.json").read_text()):
        found = measure(case, folder)
        if _processes.rank() == 0:
            (folder / f"{case['name']}.json").write_text(json.dumps(found))
    _processes.part()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
