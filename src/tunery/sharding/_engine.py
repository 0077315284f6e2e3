"""What the training loop asks of a sharding: the engine. This one is for a process that holds everything; others build on it.

The order of calls: `shard` → `begin` → for each step { `loss` and `backward` for each batch → `step` } ; `whole` and `optimizer_state`
for a checkpoint. Every process makes the same calls in the same order, since most of them exchange something.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunery.sharding import _processes

State = Mapping[str, torch.Tensor]
"""The optimiser's state of one parameter: `step`, `exp_avg`, `exp_avg_sq`, whole and on the CPU."""


@dataclass(frozen=True)
class Held:
    """Bytes that a process holds, as the ZeRO paper counts them; the optimiser's with its own copy of the weights where it has one."""

    parameters: int
    optimizer: int


class Engine:
    """One process, which holds everything."""

    alone = True
    """Whether the model is the same object with the same parameters after training, to be used on."""
    copies = 1
    """How many copies of the optimiser's state all processes hold together."""

    def __init__(self) -> None:
        self.rank, self.world = _processes.rank(), _processes.world()

    def shard(self, objective: nn.Module, model: nn.Module) -> None:
        """Take the weights. objective: batch → (sum of losses, sum of weights), with `model` inside; what is trained requires gradients.

        Parameters of `model` may be other objects afterwards.
        """
        self.objective: Any = objective
        self.model = model

    def begin(self, groups: list[dict[str, Any]], rate: float, weight_decay: float, clip: float | None) -> None:
        """Make the optimiser, AdamW, for these parameter groups. clip: the greatest Euclidean norm of a step's gradient, None: any."""
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.clip = clip
        # Fused: one kernel for all parameters; the default's loop over them took a fifth of a step of a LoRA run on a CPU.
        self.optimizer: Any = torch.optim.AdamW(groups, lr=rate, weight_decay=weight_decay, fused=True)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups, in the order given; the loop sets their `lr`."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def loss(self, batch: Any, last: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of a batch's losses, with gradients, and the sum of its weights. Also for validation, under `torch.no_grad`.

        last: no other batch of this step follows.
        """
        nats, weight = self.objective(batch)
        return nats, weight

    def inside(self, look: Callable[[Any], None]) -> None:
        """Call `look(model)` where a loss would be computed, so that it may call the model; without gradients."""
        self.objective(None, look)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of what `loss` gave last. Over the processes gradients are summed."""
        loss.backward()

    def step(self) -> float:
        """Clip the gradient and change the weights; the gradient's norm before clipping. One that is no number changes nothing."""
        norm = self._clipped()
        if math.isfinite(norm):
            self.optimizer.step()
        return norm

    def clear(self) -> None:
        """Take the gradients away after a step."""
        self.optimizer.zero_grad(set_to_none=True)

    def forget(self, batch: Any) -> None:
        """Throw the gradients away without a step. batch: any one, for engines that need another backward pass to do so."""
        self.clear()

    def finite(self) -> bool:
        """Whether all trained weights are numbers, in every process."""
        return self.largest(not all(bool(torch.isfinite(t).all()) for t in self._held())) == 0

    def gradients(self) -> dict[str, torch.Tensor]:
        """The gradients by name, whole, after the last `backward` of a step; a name that has none is left out. For tests."""
        return {name: p.grad.detach().clone() for name, p in self.parameters.items() if p.grad is not None}

    @contextmanager
    def whole(self) -> Iterator[bool]:
        """Within, on the first process, the trained weights of `model` are whole, to be written; yields whether this is that process."""
        yield self.rank == 0

    def optimizer_state(self) -> Iterator[tuple[str, State]]:
        """The optimiser's state by the parameter's name, one after the other; what the first process gets is whole."""
        for name, p in self.parameters.items():
            state = self.optimizer.state.get(p, {})
            if state:
                yield name, {key: torch.as_tensor(value).detach().cpu().contiguous() for key, value in state.items()}

    def load_optimizer_state(self, states: Mapping[str, State]) -> None:
        """Put back what `optimizer_state` gave, written by any number of processes and any sharding."""
        for name, p in self.parameters.items():
            if name in states:
                self.optimizer.state[p] = {k: v.to(p.device) for k, v in states[name].items()}

    def moments(self) -> int:
        """Bytes of AdamW's two values for each trained one, whole."""
        return sum(2 * p.numel() * p.element_size() for p in self.parameters.values())

    def held(self) -> Held:
        """What this process holds of the weights and the optimiser's state; of the latter only what exists by now."""
        states = [t for state in self.optimizer.state.values() for t in state.values()]
        return Held(stored(self.model.parameters()), stored(states))

    def summed(self, *values: float) -> list[float]:
        """The sums over all processes."""
        return _processes.summed(values) if self.world > 1 else list(values)

    def largest(self, value: float) -> float:
        """The greatest over all processes."""
        return _processes.largest([value])[0] if self.world > 1 else value

    def collected(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """A small tensor of each process, in the order of ranks."""
        return _processes.collected(tensor)

    def _kept(self, value: torch.Tensor) -> torch.Tensor:
        """A whole weight where there is room for all of them: on its device where little is trained, as for adapters, else in main memory."""
        count = sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())
        learned = sum(getattr(p, "ds_numel", p.numel()) for p in self.parameters.values())
        return value if learned * 10 < count else value.cpu()

    def _held(self) -> Iterable[torch.Tensor]:
        """This process's part of the trained weights."""
        return self.parameters.values()

    def _clipped(self) -> float:
        limit = self.clip if self.clip is not None else math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit))


def stored(tensors: Any) -> int:
    """Bytes of the memory under tensors; memory that several share counts once."""
    storages = {}
    for tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        storage = local.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@contextmanager
def put_in_place(model: nn.Module, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within, the named parameters of `model` are these tensors, wherever a parameter stands (tied ones stand in several places)."""
    new = {id(p): nn.Parameter(values[name]) for name, p in model.named_parameters() if name in values}
    places = [
        (module, name, p) for module in model.modules() for name, p in list(module._parameters.items()) if p is not None and id(p) in new
    ]
    for module, name, p in places:
        module._parameters[name] = new[id(p)]
    try:
        yield
    finally:
        for module, name, p in places:
            module._parameters[name] = p
