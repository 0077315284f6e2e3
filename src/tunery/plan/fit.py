"""Settings that fit into a given memory: the fewest changes of the recipe first."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tunery.errors import InputError
from tunery.plan.choice import Candidate
from tunery.plan.whole import Plan

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}
SHORTEST = 64
"""Below this a `max_length` cuts nearly every text."""


@dataclass(frozen=True)
class Fitting:
    """Lines of a recipe, and what training with them takes."""

    lines: tuple[str, ...]
    candidate: Candidate


def size(text: str) -> int:
    """Bytes: `2GB`, `1.5 GiB`, `800M`. Raises InputError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if not found or found[2] not in _UNITS or not float(found[1]):
        raise InputError(f"--fit {text}: this is not a size of memory; write it as 2GB or 800MB")
    return int(float(found[1]) * _UNITS[found[2]])


def fit(limit: int, method: str, max_length: int, plan: Callable[[tuple[str, ...], bool, int], Plan]) -> list[Fitting]:
    """Settings that fit into `limit` bytes (of one device, or of all processes here), those closest to the recipe first.

    plan(methods, gradient checkpointing, max_length) plans the recipe with that. Looks at the recipe's method as it is, with gradient
    checkpointing, then with halved lengths; then at LoRA and QLoRA likewise. Empty where none fits.
    """
    found: list[Fitting] = []
    for name in dict.fromkeys((method, "lora", "qlora")):
        for checkpointing, length in _settings(max_length):
            made = plan((name,), checkpointing, length)
            fitting = [c for c in made.candidates if (c.memory.total_bytes if made.shared else c.memory.process_bytes) <= limit]
            if not fitting:
                continue
            best = min(fitting, key=lambda c: (c.seconds, c.memory.total_bytes))
            found.append(Fitting(tuple(_lines(best, name != method, checkpointing, length if length != max_length else None)), best))
            break
    return found


def _settings(max_length: int) -> list[tuple[bool, int]]:
    lengths = [max_length >> k for k in range(1, max_length.bit_length()) if max_length >> k >= SHORTEST]
    return [(False, max_length), (True, max_length), *((True, n) for n in lengths)]


def _lines(candidate: Candidate, other: bool, checkpointing: bool, length: int | None) -> list[str]:
    train = ["gradient_checkpointing: true"] * checkpointing + ([f"max_length: {length}"] if length else [])
    lines = [f"method: {candidate.method}"] if other else []
    if train:
        lines.append(f"train: {{{', '.join(train)}}}")
    if candidate.sharding != "none":
        lines.append(f"sharding: {{stage: {candidate.sharding}, processes: {candidate.processes}}}")
    return lines or ["# nothing has to change"]
