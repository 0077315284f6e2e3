"""DDP: torch's DistributedDataParallel around a model that every process holds whole."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tunery.sharding._engine import Engine


class Replicated(Engine):
    """Gradients are added up in each process, and summed over all of them with a step's last batch."""

    alone = False

    def __init__(self) -> None:
        super().__init__()
        self.copies = self.world

    def shard(self, objective: nn.Module, model: nn.Module) -> None:
        super().shard(objective, model)
        # Unused weights are looked for, which walks over the graph of one batch a step: a router may leave some out of a batch.
        self.parallel = DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=True)

    def loss(self, batch: Any, last: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        if not torch.is_grad_enabled():
            return super().loss(batch)
        with nullcontext() if last else self.parallel.no_sync():
            nats, weight = self.parallel(batch)
        return nats, weight

    def backward(self, loss: torch.Tensor) -> None:
        (loss * self.world).backward()  # DDP gives the mean over the processes
