"""The plan of a recipe: every method with every sharding, what each takes, what is refused and why, and which to choose."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from tunery import combinations, machine, methods
from tunery.data.prepare import Prepared
from tunery.errors import InputError
from tunery.models.kind import model_kind
from tunery.plan import calibration
from tunery.plan.absent import Absent
from tunery.plan.choice import Candidate, Choice, recommend
from tunery.plan.hardware import Hardware
from tunery.plan.memory import memory
from tunery.plan.rates import Rates
from tunery.plan.time import evaluate_seconds, train_seconds
from tunery.resolve import Resolved

_NEEDS_VALUES = ("meta", "quantiz", "quantis")
"""What torch's and PEFT's messages have in them where a method reads the values of weights, which shapes have not."""
NEW_TOKENS = 16
"""Generated tokens taken for a row where the recipe does not say."""


@dataclass(frozen=True)
class Plan:
    """What `tunery plan` shows. available_bytes: of one device, or of this machine, which its processes share.

    decided: for each setting that the recipe left open, what was decided and why. method: the recipe's own.
    """

    candidates: tuple[Candidate, ...]
    refused: tuple[tuple[str, str, str], ...]
    choice: Choice
    machine: str
    measured: bool
    precision: str
    available_bytes: int
    shared: bool
    steps: int
    tokens: int
    method: str
    decided: Mapping[str, str]
    absent: Absent | None = None
    """The model, where it is not on this machine."""
    price: float | None = None
    watts: float | None = None

    def money(self, c: Candidate) -> float | None:
        """At `price` an hour and device, training and evaluation."""
        return None if self.price is None else self._hours(c) * self.price

    def energy(self, c: Candidate) -> float | None:
        """Watt hours at `watts` a device."""
        return None if self.watts is None else self._hours(c) * self.watts

    def _hours(self, c: Candidate) -> float:
        return (c.seconds + c.evaluate_seconds) / 3600 * (1 if self.shared else c.processes)

    def as_json(self) -> dict[str, Any]:
        """Plain values: one object a candidate, the refused ones, and the choice."""
        return {
            "machine": self.machine,
            "measured": self.measured,
            "precision": self.precision,
            "available_bytes": self.available_bytes,
            "steps": self.steps,
            "tokens": self.tokens,
            "tokenizer": self.absent.tokenizer_name if self.absent else None,
            "hub": self.absent.as_json() if self.absent else None,
            "decided": dict(self.decided),
            "candidates": [
                {
                    "method": c.method,
                    "sharding": c.sharding,
                    "processes": c.processes,
                    "peak_memory_bytes": c.memory.total_bytes,
                    "process_memory_bytes": c.memory.process_bytes,
                    "memory": c.memory.parts,
                    "seconds": round(c.seconds, 3),
                    "evaluate_seconds": round(c.evaluate_seconds, 3),
                    "trainable_parameters": c.learned_parameters,
                    "price": self.money(c),
                    "watt_hours": self.energy(c),
                }
                for c in self.candidates
            ],
            "refused": [{"method": m, "sharding": s, "reason": why} for m, s, why in self.refused],
            "recommended": None
            if self.choice.candidate is None
            else {"method": self.choice.candidate.method, "sharding": self.choice.candidate.sharding},
            "reasons": list(self.choice.reasons),
            "lines": list(self.choice.lines),
        }


def _tokens_read(resolved: Resolved, tested: Any, rows: int) -> int:
    """Tokens of the first rows that an evaluation reads: what rows begin with in common once, where the task can share it."""
    from tunery.infer._reading import READ_TOKENS
    from tunery.tasks._next_token import loss
    from tunery.train.packs import pack

    if resolved.task.loss is not loss or not resolved.share_prefixes:
        return int(tested.lengths[:rows].sum())
    return sum(len(p.tokens) for p in pack((tested[n] for n in range(rows)), READ_TOKENS))


def make(
    resolved: Resolved,
    prepared: Prepared,
    absent: Absent | None = None,
    on: Hardware | None = None,
    processes: int | None = None,
    price: float | None = None,
    watts: float | None = None,
    only: tuple[str, ...] | None = None,
    again: bool = False,
) -> Plan:
    """The whole table. absent: the model, where it is not on this machine. only: these methods."""
    import torch
    from transformers import AutoConfig

    from tunery.kernels import library
    from tunery.plan._workloads import Job, workload

    dtype, rates, available = _machine(resolved, on, again)
    tested = prepared.tested
    limit = resolved.recipe.evaluate.limit
    rows = min(len(tested), limit or len(tested)) if tested is not None else 0
    job = Job(
        config=absent.config if absent else AutoConfig.from_pretrained(resolved.folder, trust_remote_code=False, local_files_only=True),
        dtype=getattr(torch, dtype),
        task=resolved.task,
        task_options=resolved.task_options,
        rows=prepared.train,
        settings=resolved.settings,
        checkpointing=resolved.settings.gradient_checkpointing,
        test_rows=rows,
        test_tokens=_tokens_read(resolved, tested, rows) if tested is not None else 0,
        new_tokens=(resolved.recipe.evaluate.max_new_tokens or NEW_TOKENS) if resolved.task.ANSWERS else 0,
    )
    shared = on is None
    kind = absent.kind if absent else model_kind(resolved.folder)
    precision = {"bfloat16": "bf16", "float32": "fp32"}[dtype]
    candidates: list[Candidate] = []
    refused: list[tuple[str, str, str]] = []
    steps = 0
    for name in only or combinations.values()["method"]:
        method = methods.get(name)
        own = name == resolved.recipe.method.name
        options = resolved.options if own else _like(resolved.options, method)
        work: Any = None
        for stage in combinations.values()["sharding"]:
            known = {"task": _task_name(resolved), "method": name, "sharding": stage, "model": kind, "precision": precision}
            rule = combinations.refusal_of({**known, "device": "cuda" if on else resolved.device})
            if rule is not None:
                refused.append((name, stage, rule.refusal.reason))
                continue
            if work is None:
                try:
                    with library.without() if on else nullcontext():  # on a GPU torch's own operations are used
                        work = workload(job, method, options)
                except (RuntimeError, NotImplementedError) as e:
                    if not any(word in str(e).lower() for word in _NEEDS_VALUES):
                        raise
                    refused.append((name, "any", f"not planned: it cannot be counted on shapes alone ({str(e).splitlines()[0][:120]})"))
                    break
            count = 1 if stage == "none" else _processes(resolved, stage, processes, shared)
            if stage != "none" and count == 1:
                continue
            used = memory(work, stage, count, rates, mapped=shared and resolved.device == "cpu")
            seconds = train_seconds(work, rates, dtype, stage, count, on.link if on else None)
            candidates.append(Candidate(name, stage, count, used, seconds, evaluate_seconds(work, rates, dtype), work.learned_parameters))
            steps = work.steps
    return Plan(
        candidates=tuple(candidates),
        refused=tuple(refused),
        choice=recommend(candidates, available, shared),
        machine=rates.name,
        measured=rates.measured,
        precision=precision,
        available_bytes=available,
        shared=shared,
        steps=steps,
        tokens=int(prepared.train.lengths.sum()),
        absent=absent,
        method=resolved.recipe.method.name,
        decided=_decided(resolved, precision, on),
        price=price,
        watts=watts,
    )


def _decided(resolved: Resolved, precision: str, on: Hardware | None) -> dict[str, str]:
    """The reasons of the settings that the recipe leaves open, with the named hardware's own precision in place of this machine's."""
    found = {key: reason for key, reason in resolved.reasons.items() if not reason.endswith("as the recipe says")}
    if on is not None and found.get("train.precision", "").startswith("auto"):
        found["train.precision"] = f"auto: {precision}, {on.name} {'has' if on.bfloat16 else 'has no'} bfloat16 units by its data sheet"
    return found


def _like(options: Any, method: Any) -> Any:
    """A method's own defaults, but for LoRA's kin the rank, targets and other settings that the recipe has, so that like is compared."""
    from tunery.methods._low_rank import LowRankOptions

    if not (isinstance(options, LowRankOptions) and issubclass(method.Options, LowRankOptions)):
        return method.Options()
    common = set(LowRankOptions.model_fields) & set(method.Options.model_fields)
    return method.Options.model_validate({k: v for k, v in options.model_dump().items() if k in common})


def _machine(resolved: Resolved, on: Hardware | None, again: bool) -> tuple[str, Rates, int]:
    if on is not None:
        wanted: Mapping[str, str] = {"bf16": "bfloat16", "fp32": "float32"}
        return wanted.get(resolved.recipe.train.precision, on.dtype()) if on.bfloat16 else "float32", on.rates(), on.memory_bytes
    if resolved.device != "cpu":
        raise InputError("this machine has a GPU, which is not calibrated: name it with --on, such as --on a100-80gb")
    return resolved.dtype, calibration.rates(again), machine.memory()[1]


def _processes(resolved: Resolved, stage: str, processes: int | None, shared: bool) -> int:
    if processes is not None:
        return processes
    chosen = resolved.recipe.sharding
    if chosen.name == stage:
        return resolved.processes
    return 2 if shared else 1


def _task_name(resolved: Resolved) -> str:
    from tunery import tasks

    name = resolved.recipe.task.name
    if resolved.task.FORM != tasks.get(name).FORM:
        return next(other for other in tasks.names() if tasks.get(other).FORM == resolved.task.FORM)
    return name


def with_settings(resolved: Resolved, **changes: Any) -> Resolved:
    """The same with other training settings."""
    train = resolved.recipe.train.model_copy(update=changes)
    shared = set(type(resolved.settings).__dataclass_fields__) & set(changes)
    settings = replace(resolved.settings, **{k: changes[k] for k in shared})
    return replace(resolved, recipe=resolved.recipe.model_copy(update={"train": train}), settings=settings)
