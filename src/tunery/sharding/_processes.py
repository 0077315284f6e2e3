"""The processes that train together: meeting, and small exchanges of numbers beside the training itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import distributed

from tunery.sharding import MEETING

PATIENCE = timedelta(hours=12)
"""How long a process waits for another. Long, since the first one writes checkpoints meanwhile; one that dies is noticed at once."""


def meet() -> torch.device:
    """Join the other processes; the device that is this one's. RANK, WORLD_SIZE and LOCAL_RANK are in the environment."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        file = os.environ.get(MEETING)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{file}" if file else "env://",
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=PATIENCE,
        )
    return device


def part() -> None:
    """Leave the others; when none of them waits for this one any more."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def summed(values: Sequence[float]) -> list[float]:
    """The sums over all processes, in float64."""
    return _reduced(values, distributed.ReduceOp.SUM)


def largest(values: Sequence[float]) -> list[float]:
    """The greatest of all processes, in float64."""
    return _reduced(values, distributed.ReduceOp.MAX)


def collected(tensor: torch.Tensor) -> list[torch.Tensor]:
    """A tensor of each process, in the order of ranks; all have the same shape. On the CPU."""
    if world() == 1:
        return [tensor]
    found = [torch.empty_like(tensor) for _ in range(world())]
    distributed.all_gather(found, tensor)
    return found


def _reduced(values: Sequence[float], op: distributed.ReduceOp) -> list[float]:
    if world() == 1:
        return list(values)
    tensor = torch.tensor(list(values), dtype=torch.float64)
    distributed.all_reduce(tensor, op)
    return tensor.tolist()  # type: ignore[no-any-return]
