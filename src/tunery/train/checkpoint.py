"""Checkpoints: everything that the next step depends on, in a folder that is whole or not there.

step-N/learned/                what is learned, in the method's own format
step-N/optimizer.safetensors   the optimiser's state, by parameter name
step-N/random.safetensors      torch's random state: `cpu`, `cuda`; of further processes `cpu-1`, `cuda-1` …
step-N/state.json              the step, counters, the best validation so far

Everything is whole, whatever divided it while it was trained: any number of processes, in any sharding, can go on from it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunery.run import new_folder, write_text

if TYPE_CHECKING:
    import torch

    from tunery.sharding._engine import Engine

KEEP = 2
"""How many checkpoints stay, beside the best one: the newest, and the one before it."""


@dataclass
class State:
    """The counters of a run after `step` steps. The data's position is `step`, since the steps are planned ahead."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: float = 0
    rows: int = 0
    seconds: float = 0.0
    first_loss: float | None = None
    final_loss: float | None = None
    best_step: int | None = None
    best_valid_loss: float | None = None
    validations_since_best: int = 0


def seed(value: int, engine: Engine, step: int = 0) -> None:
    """Set this process's random state: the first process's by `value` alone, each further one's by its rank and the step too."""
    import numpy as np
    import torch

    torch.manual_seed(value if engine.rank == 0 else int(np.random.SeedSequence([value, engine.rank, step]).generate_state(1)[0]))


def save(folder: Path, state: State, engine: Engine, save_learned: Callable[[Path], None]) -> Path:
    """Write `folder/step-N`; the first process does, and the others hand it their parts. Older ones beyond `KEEP` go, except the best."""
    target = folder / f"step-{state.step}"
    random = _random_states(engine)
    tensors: dict[str, torch.Tensor] = {}
    for name, parts in engine.optimizer_state():
        if engine.rank == 0:
            tensors |= {f"{name}/{key}": value for key, value in parts.items()}
    with engine.whole() as first:
        if first:
            _write(target, state, tensors, random, save_learned)
            for step, old in _all(folder)[:-KEEP]:
                if step != state.best_step:
                    shutil.rmtree(old)
    return target


def _write(
    target: Path,
    state: State,
    tensors: dict[str, torch.Tensor],
    random: dict[str, torch.Tensor],
    save_learned: Callable[[Path], None],
) -> None:
    from safetensors.torch import save_file

    with new_folder(target) as new:
        save_learned(new / "learned")
        save_file(tensors, str(new / "optimizer.safetensors"))
        save_file(random, str(new / "random.safetensors"))
        write_text(new / "state.json", json.dumps(asdict(state), indent=2) + "\n")


def _random_states(engine: Engine) -> dict[str, torch.Tensor]:
    import torch

    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    return {_of_rank(key, rank): value for key, mine in own.items() for rank, value in enumerate(engine.collected(mine))}


def _of_rank(key: str, rank: int) -> str:
    return f"{key}-{rank}" if rank else key


def newest(folder: Path) -> Path | None:
    """The checkpoint with the highest step, or None."""
    found = _all(folder)
    return found[-1][1] if found else None


def load(checkpoint: Path, engine: Engine) -> State:
    """Put the optimiser's and the random state back as they were; the state that was saved. What was learned is loaded before.

    With more processes than wrote it, the further ones keep the random state that they have.
    """
    import torch
    from safetensors.torch import load_file

    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(str(checkpoint / "optimizer.safetensors")).items():
        name, _, part = key.rpartition("/")
        by_name.setdefault(name, {})[part] = value
    engine.load_optimizer_state(by_name)
    state = State(**json.loads((checkpoint / "state.json").read_text()))
    random = load_file(str(checkpoint / "random.safetensors"))
    if (cpu := random.get(_of_rank("cpu", engine.rank))) is not None:
        torch.set_rng_state(cpu)
    if (cuda := random.get(_of_rank("cuda", engine.rank))) is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    return state


def _all(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    return sorted((int(p.name.removeprefix("step-")), p) for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit())
