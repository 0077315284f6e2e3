"""Peak memory by part, for each process of a sharding.

What each process holds follows Rajbhandari et al. 2020, "ZeRO" (arXiv:1910.02054), sections 3 and 5: with Ψ parameters, N processes and
the optimiser's K bytes a parameter, stage 1 divides K Ψ by N, stage 2 the gradients too, stage 3 the weights too. Here what is learned is
float32 and AdamW keeps two moments of it, so K is 8, and only what is learned has gradients and moments.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunery.plan.rates import Rates
from tunery.plan.workload import Workload

DIVIDED: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "ddp": frozenset(),
    "zero1": frozenset({"optimiser"}),
    "zero2": frozenset({"optimiser", "gradients"}),
    "zero3": frozenset({"optimiser", "gradients", "weights", "adapter"}),
    "fsdp": frozenset({"optimiser", "gradients", "weights", "adapter"}),
}
"""What each sharding divides over its processes."""


@dataclass(frozen=True)
class Memory:
    """Bytes of each part in one process, and the number of processes."""

    parts: dict[str, int]
    processes: int

    @property
    def process_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def total_bytes(self) -> int:
        return self.process_bytes * self.processes


def memory(work: Workload, sharding: str, processes: int, rates: Rates, mapped: bool = True) -> Memory:
    """The height of a training step. mapped: weights lie in memory mapped from their file, as on a CPU, not in a device's own.

    Where a step is one batch, gradients come while activations go, so `activations` is what there is at the height beyond all gradients.
    """
    own = work.learned_parameters * 4
    adapter = 0 if work.base_parameters == work.learned_parameters else own
    whole = {
        "weights": work.base_bytes + (work.mapped_bytes if mapped else 0),
        "adapter": adapter,
        "gradients": own,
        "optimiser": 2 * own,
    }
    divided = DIVIDED[sharding]
    parts = {name: -(-size // processes) if name in divided else size for name, size in whole.items()}
    gathered = work.largest_layer_bytes if "weights" in divided and processes > 1 else 0
    beyond = work.height.total if work.several else max(0, work.height.total - own)
    parts["logits"] = min(work.height.logits, beyond)
    parts["activations"] = beyond - parts["logits"] + work.copied_bytes + gathered
    parts["allocator"] = int(rates.allocator * (parts["logits"] + parts["activations"]))
    parts["libraries"] = rates.library_bytes
    return Memory(parts, processes)
