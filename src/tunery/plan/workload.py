"""What a training run has to do, as plain numbers: operations and saved bytes of its batches, how many there are, what is learned."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

Operation = tuple[str, str, int, int]
"""(kind, type of its values, floating point operations, bytes read and written).

The kinds: `matrix`; `tiles`, products with frozen weights and all that is computed with them, by the kernels in tiles;
`thin`, a matrix product with one side of at most 64, as the low ranks of LoRA have; `attention` and
`attention_backward`, which compute at rates of their own; `other`, which only moves values.
"""


@dataclass
class Count:
    """One batch, forward and backward."""

    operations: Counter[Operation] = field(default_factory=Counter)
    forward: Counter[Operation] = field(default_factory=Counter)
    """The part of `operations` that the loss alone needs."""
    saved_bytes: int = 0
    """What the backward pass needs of the forward pass, when that has ended: the activations."""
    layer_bytes: int = 0
    """The part of `saved_bytes` that one more layer adds."""

    def extrapolated(self, more: Count, layers: int) -> Count:
        """From a model of one layer (self) and of two (`more`) to one of `layers`: every further layer costs what the second did."""
        found = Count(_line(self.operations, more.operations, layers), _line(self.forward, more.forward, layers))
        found.layer_bytes = more.saved_bytes - self.saved_bytes
        found.saved_bytes = self.saved_bytes + found.layer_bytes * (layers - 1)
        return found

    def flops(self, *kinds: str) -> int:
        """Floating point operations, of the kinds named or of all."""
        return sum(op[2] * n for op, n in self.operations.items() if not kinds or op[0] in kinds)


def _line(one: Counter[Operation], two: Counter[Operation], layers: int) -> Counter[Operation]:
    found = Counter({key: one[key] + (two[key] - one[key]) * (layers - 1) for key in set(one) | set(two)})
    return Counter({key: n for key, n in found.items() if n})


@dataclass(frozen=True)
class Height:
    """Bytes that one batch's computation holds when it holds most, beside the weights; `logits`: those as wide as the vocabulary."""

    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.activations + self.logits


@dataclass(frozen=True)
class Workload:
    """One method on one recipe's rows. Sizes are in bytes, batches in computed positions (what rows share counts once)."""

    base_parameters: int
    learned_parameters: int
    base_bytes: int
    """The base's weights as training holds them: float32 where they learn, four bits where they are quantised."""
    mapped_bytes: int
    """Of a quantised base, the file's own weights: read through memory mapped from the file, which stays while any tensor is in it."""
    copied_bytes: int
    """A second form of the weights while a batch is computed: bfloat16 of float32 weights under autocast, or one layer dequantised."""
    largest_layer_bytes: int
    """What a sharding that divides weights gathers at a time."""
    counted: tuple[tuple[int, Count], ...]
    """(positions, count) of some real batches, smallest first; the last is the largest of the run."""
    height: Height
    """Of the largest batch. Where a step is one batch its gradients are part of it, as they come while activations go."""
    several: bool
    """Whether a step has several batches, so that all gradients of the first are there while the second is computed."""
    batches: tuple[tuple[int, float], ...]
    """(positions, how many such batches the run has)."""
    steps: int
    tokens: int
    recast_bytes: int
    """Bytes read and written a batch where four-bit weights are written out for each product."""
    test_rows: int
    test_tokens: int
    new_tokens: int
    """Tokens that evaluation generates for a row; 0 where it only scores."""
    checkpointing: bool = False
    autocast: bool = False
    """Whether float32 weights are trained in products of bfloat16."""
