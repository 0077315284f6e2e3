"""ZeRO by DeepSpeed.

DeepSpeed gives the mean of the processes' gradients, so the loss is multiplied by their number; the batches of a step are told apart by
its accumulation boundary. Its optimiser is torch's AdamW on one flat float32 tensor a group, of which each process has a part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tunery.errors import RunError
from tunery.sharding._deepspeed_config import DeepSpeedOptions, whole_config
from tunery.sharding._deepspeed_own import read_own
from tunery.sharding._engine import Engine, Held, State, put_in_place, stored
from tunery.sharding._import_deepspeed import import_deepspeed
from tunery.sharding._layers import layers

MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeed(Engine):
    """ZeRO stage 1, 2 or 3."""

    alone = False

    def __init__(self, stage: int, options: DeepSpeedOptions) -> None:
        super().__init__()
        self.stage, self.options = stage, options

    def begin(self, groups: list[dict[str, Any]], rate: float, weight_decay: float, clip: float | None) -> None:
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        device = next(self.model.parameters()).device
        deepspeed = import_deepspeed()
        from deepspeed.utils import set_z3_leaf_module

        if self.stage == 3:
            # A layer is gathered as one, so that code inside it (an adapter's, PEFT's) may read any of its weights.
            for layer in layers(self.model):
                set_z3_leaf_module(layer, True)
            # It collects a layer's gradients when that of the layer's input is known, so there must be one for the first layer too.
            self.model.enable_input_require_grads()
        learned = sum(p.numel() for p in self.parameters.values())
        own = read_own(self.options.config)
        self.engine, self.zero, _, _ = deepspeed.initialize(
            model=self.objective,
            optimizer=torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, weight_decay=weight_decay, fused=True),
            config=whole_config(own, self.stage, self.options.offload, clip, device.type, learned),
            dist_init_required=False,
        )
        self.optimizer = self.zero.optimizer

    def loss(self, batch: Any, last: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.is_grad_enabled():
            self.engine.set_gradient_accumulation_boundary(last)
        nats, weight = self.engine(batch)
        return nats, weight

    def inside(self, look: Callable[[Any], None]) -> None:
        self.engine(None, look)

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss * self.world, scale_wrt_gas=False)

    def step(self) -> float:
        self.engine.step()
        if not self.engine.was_step_applied():
            return math.nan  # DeepSpeed leaves a step out whose gradient is no number
        return float(self.engine.get_global_grad_norm())

    def clear(self) -> None:
        """DeepSpeed has done it."""

    def forget(self, batch: Any) -> None:
        # It has no way to forget what it has exchanged, except that it leaves out a step whose gradient is no number.
        nats, _ = self.loss(batch)
        self.backward(nats * math.nan)
        if not math.isnan(self.step()):
            raise RunError("DeepSpeed changed the weights by a gradient that is no number; install deepspeed 0.19.8 or a later 0.19")

    def gradients(self) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_full_grad

        found = {name: safe_get_full_grad(p) for name, p in self.parameters.items()}
        return {name: g.detach().clone() for name, g in found.items() if g is not None}

    @contextmanager
    def whole(self) -> Iterator[bool]:
        values = {}
        if self.stage == 3:
            from deepspeed.utils import safe_get_full_fp32_param

            for name, p in self.parameters.items():
                value = safe_get_full_fp32_param(p)
                if self.rank == 0:
                    values[name] = self._kept(value.detach().to(p.dtype))
        with put_in_place(self.model, values):
            yield self.rank == 0

    def optimizer_state(self) -> Iterator[tuple[str, State]]:
        from deepspeed.utils import safe_get_full_optimizer_state

        states = list(self.optimizer.state.values())
        if not states or "step" not in states[0]:
            return
        step = states[0]["step"].detach().cpu()  # all groups have made the same steps
        for name, p in self.parameters.items():
            found = {key: safe_get_full_optimizer_state(p, key).detach().cpu().contiguous() for key in MOMENTS}
            yield name, {"step": step.clone(), **found}

    def load_optimizer_state(self, states: Mapping[str, State]) -> None:
        if not states:
            return
        step = next(iter(states.values()))["step"]
        for group in self.optimizer.param_groups if self.stage < 3 else [{"params": self.zero.fp32_partitioned_groups_flat}]:
            for flat in group["params"]:
                self.optimizer.state[flat] = {"step": step.to(flat.device, copy=True), **{key: torch.zeros_like(flat) for key in MOMENTS}}
        if self.stage == 3:
            from deepspeed.utils import safe_set_local_optimizer_state as put
        else:
            from deepspeed.utils import safe_set_full_optimizer_state as put

            self.zero._lazy_init_hp_params_optimizer_state()
        for name, p in self.parameters.items():
            for key in MOMENTS if name in states else ():
                value = states[name][key]
                put(p, self._own_part(value, p) if self.stage == 3 else value, key)

    def moments(self) -> int:
        return sum(2 * getattr(p, "ds_numel", p.numel()) * 4 for p in self.parameters.values())

    def held(self) -> Held:
        weights = list(self.model.parameters())
        if self.stage == 3:
            weights += [p.ds_tensor for p in weights]  # beside what is gathered now
        states = [t for state in self.optimizer.state.values() for t in state.values()]
        copies = self.zero.single_partition_of_fp32_groups if self.stage < 3 else self.zero.fp32_partitioned_groups_flat
        return Held(stored(weights), stored([*states, *copies]))

    def _held(self) -> Iterable[torch.Tensor]:
        return [self._without_filling(p) if self.stage == 3 else p for p in self.parameters.values()]

    def _without_filling(self, parameter: Any) -> torch.Tensor:
        """This process's part without what fills up the last one, which ZeRO-3 leaves as the memory was: it may be no number."""
        size = parameter.ds_tensor.numel()
        part: torch.Tensor = parameter.ds_tensor.flatten()[: max(0, parameter.ds_numel - size * self.rank)]
        return part

    def _own_part(self, value: torch.Tensor, parameter: Any) -> torch.Tensor:
        """This process's part of a whole tensor, as ZeRO-3 divides it: equal parts in order, the last one filled up with zeros."""
        size = parameter.ds_tensor.numel()
        part = torch.zeros(size, dtype=value.dtype)
        own = value.flatten()[size * self.rank : size * (self.rank + 1)]
        part[: len(own)] = own
        return part
