"""Checkpoints: everything that the next step depends on, in a folder that is whole or not there.

step-N/adapter/ (or merged/)   what is learned, in the method's own format
step-N/optimizer.safetensors   the optimiser's state, by parameter name
step-N/random.safetensors      torch's random state
step-N/state.json              the step, counters, the best validation so far
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


def save(
    folder: Path,
    state: State,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    save_learned: Callable[[Path], None],
) -> Path:
    """Write `folder/step-N`. Older ones beyond `KEEP` go, except the best."""
    import torch
    from safetensors.torch import save_file

    target = folder / f"step-{state.step}"
    with new_folder(target) as new:
        save_learned(new / "learned")
        tensors = {}
        for name, p in parameters.items():
            for key, value in optimizer.state.get(p, {}).items():
                tensors[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
        save_file(tensors, str(new / "optimizer.safetensors"))
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        save_file(random, str(new / "random.safetensors"))
        write_text(new / "state.json", json.dumps(asdict(state), indent=2) + "\n")
    for step, old in _all(folder)[:-KEEP]:
        if step != state.best_step:
            shutil.rmtree(old)
    return target


def newest(folder: Path) -> Path | None:
    """The checkpoint with the highest step, or None."""
    found = _all(folder)
    return found[-1][1] if found else None


def load(
    checkpoint: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    load_learned: Callable[[Path], None],
) -> State:
    """Put everything back as it was; the state that was saved."""
    import torch
    from safetensors.torch import load_file

    load_learned(checkpoint / "learned")
    tensors = load_file(str(checkpoint / "optimizer.safetensors"))
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, part = key.rpartition("/")
        by_name.setdefault(name, {})[part] = value
    for name, p in parameters.items():
        if name in by_name:
            optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in by_name[name].items()}
    random = load_file(str(checkpoint / "random.safetensors"))
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    return State(**json.loads((checkpoint / "state.json").read_text()))


def _all(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    return sorted((int(p.name.removeprefix("step-")), p) for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit())
