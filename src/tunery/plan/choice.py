"""Which method and sharding to take, with the reasons in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunery.plan.memory import Memory

PREFERRED = ("lora", "qlora", "full")
"""LoRA on all linear layers learns what full tuning learns from data of usual size ("LoRA Without Regret", 2025); QLoRA's base is rounded
to four bits, so it follows; full tuning where neither goes with the task."""


@dataclass(frozen=True)
class Candidate:
    """One method and sharding, with what it takes."""

    method: str
    sharding: str
    processes: int
    memory: Memory
    seconds: float
    evaluate_seconds: float
    learned_parameters: int


@dataclass(frozen=True)
class Choice:
    """The candidate to take, or None where none fits; why, a sentence each; and the lines of the recipe that say it."""

    candidate: Candidate | None
    reasons: tuple[str, ...]
    lines: tuple[str, ...]


def recommend(candidates: Sequence[Candidate], available: int, shared: bool) -> Choice:
    """available: bytes of one device. shared: whether all processes take from the same memory."""

    def needs(c: Candidate) -> int:
        return c.memory.total_bytes if shared else c.memory.process_bytes

    fitting = [c for c in candidates if needs(c) <= available]
    if not fitting:
        if not candidates:
            return Choice(None, ("no method goes with this task and model",), ())
        least = min(candidates, key=needs)
        return Choice(
            None,
            (
                f"nothing fits into {_gb(available)}: the least is `{least.method}` with sharding `{least.sharding}` at {_gb(needs(least))}; "
                f"`tunery plan --fit {available / 1e9:.1f}GB` looks for settings that do",
            ),
            (),
        )
    methods = {c.method for c in fitting}
    method = next((name for name in PREFERRED if name in methods), None) or min(fitting, key=lambda c: c.seconds).method
    best = min((c for c in fitting if c.method == method), key=lambda c: (c.seconds, c.memory.total_bytes))
    reasons = []
    for name in PREFERRED[: PREFERRED.index(method)] if method in PREFERRED else PREFERRED:
        tried = [c for c in candidates if c.method == name]
        reasons.append(
            f"`{name}` would need {_gb(min(map(needs, tried)))} of {_gb(available)}" if tried else f"`{name}` does not go with the rest"
        )
    reasons.append(
        {
            "lora": "LoRA on all linear layers learns as much as full tuning from data of usual size, with a small part of its memory",
            "qlora": "QLoRA is LoRA on a base of four bits",
            "full": "full tuning fits",
        }.get(method, f"of what fits, `{method}` is the fastest")
    )
    reasons.append(f"it takes {_gb(needs(best))} of {_gb(available)}")
    if best.sharding == "none":
        reasons.append("one process: it fits, and more would only share the same cores" if shared else "one process: it fits on one device")
    else:
        reasons.append(f"`{best.sharding}` on {best.processes} devices is the fastest that fits")
    lines = [f"method: {best.method}"]
    lines.append("sharding: none" if best.sharding == "none" else f"sharding: {{stage: {best.sharding}, processes: {best.processes}}}")
    return Choice(best, tuple(reasons), tuple(lines))


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
