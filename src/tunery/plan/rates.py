"""How fast a machine is, in the terms in which work is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tunery.plan.workload import Operation


@dataclass(frozen=True)
class Rates:
    """Rates a second, each by the type of the values (`bfloat16`, `float32`).

        matrix, tiles, thin, attention, attention_backward: floating point operations. moved: bytes read and written by an operation that makes a new
        tensor. streamed: the same of what no cache holds, as AdamW's step over many weights. dequantised: bytes read and written where four-bit
        weights are written out. library_bytes: a process that has loaded everything but a model. By the type of the activations, or `autocast`
    where float32 weights are trained in bfloat16 products, of a whole training batch:
        whole, what its operations' work takes over the sum of what each takes alone (caches shared, memory handed out anew);
        operation_seconds, what an operation costs beside its work (Python, autograd, threads that meet).
    """

    name: str
    rate: Mapping[str, Mapping[str, float]]
    operation_seconds: Mapping[str, float]
    library_bytes: int
    whole: Mapping[str, float]
    measured: bool
    allocator: float = 0.0
    """What a process grows by beyond what is alive in it, as a share of that: freed memory in pieces that nothing fits into."""

    elementwise: Mapping[str, float] | None = None
    """As `whole`, of what only moves values; `whole` where it is not known apart."""

    def seconds(self, operations: Counter[Operation], dtype: str) -> float:
        """Time of these operations in a training whose activations are `dtype`, or `autocast`."""
        dtype = dtype if dtype in self.whole else "bfloat16"  # of named hardware one figure serves both
        products, moving = self.parts(operations)
        moving *= (self.elementwise or self.whole)[dtype]
        return products * self.whole[dtype] + moving + sum(operations.values()) * self.operation_seconds[dtype]

    def parts(self, operations: Counter[Operation]) -> tuple[float, float]:
        """What these operations take, each alone: those that compute products, and those that move values."""
        products = moving = 0.0
        for (kind, of, flops, size), n in operations.items():
            of = of if of in self.rate["moved"] else "float32"
            if kind == "other":
                moving += n * size / self.rate["moved"][of]
            else:
                products += n * flops / self.rate[kind][of]
        return products, moving

    def moving(self, size: float, dtype: str = "float32", how: str = "moved") -> float:
        """Time to read and write that many bytes; how: `moved`, `streamed` or `dequantised`."""
        return size / self.rate[how][dtype]
