"""FSDP2: torch's `fully_shard` on every layer, and on what is outside the layers together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tunery.sharding._engine import Engine, State, put_in_place
from tunery.sharding._layers import layers


class FullySharded(Engine):
    """Each weight is divided by rows; a layer is gathered before it is computed and divided again after."""

    alone = False

    def __init__(self, offload: bool = False) -> None:
        super().__init__()
        self.offload = offload

    def shard(self, objective: nn.Module, model: nn.Module) -> None:
        super().shard(objective, model)
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (self.world,))
        # Offloading means from the GPU into main memory, where everything is already on a CPU.
        policy = CPUOffloadPolicy() if self.offload and device.type == "cuda" else OffloadPolicy()
        for layer in layers(model):
            fully_shard(layer, mesh=mesh, offload_policy=policy)
        fully_shard(objective, mesh=mesh, offload_policy=policy)
        self.modules = [m for m in objective.modules() if isinstance(m, FSDPModule)]
        for module in self.modules:
            module.set_gradient_divide_factor(1.0)  # the sum, not the mean,
            module.set_force_sum_reduction_for_comms(True)  # in the one form of it that gloo knows too

    def gradients(self) -> dict[str, torch.Tensor]:
        return {name: whole(p.grad).clone() for name, p in self.parameters.items() if p.grad is not None}

    @contextmanager
    def whole(self) -> Iterator[bool]:
        for module in self.modules:
            module.reshard()  # after a validation what is outside the layers is still gathered
        values = {}
        for name, p in self.parameters.items():
            value = whole(p.detach())
            if self.rank == 0:
                values[name] = self._kept(value)
        with put_in_place(self.model, values):
            yield self.rank == 0

    def optimizer_state(self) -> Iterator[tuple[str, State]]:
        for name, p in self.parameters.items():
            state = self.optimizer.state.get(p, {})
            if state:
                yield name, {key: whole(torch.as_tensor(value)).detach().cpu().contiguous() for key, value in state.items()}

    def load_optimizer_state(self, states: Mapping[str, State]) -> None:
        for name, p in self.parameters.items():
            if name in states:
                self.optimizer.state[p] = {k: v.to(p.device) if k == "step" else _as(v, p) for k, v in states[name].items()}

    def _held(self) -> Iterable[torch.Tensor]:
        return [p.to_local() if isinstance(p, DTensor) else p for p in self.parameters.values()]

    def _clipped(self) -> float:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.clip, norm)
        return float(norm)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which each process holds a part, put together; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _as(value: torch.Tensor, parameter: Any) -> torch.Tensor:
    """`value`, which every process has whole, divided as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return value.to(parameter.device)
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)
