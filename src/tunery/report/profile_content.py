"""From profile.json to what its page and the terminal show. What was not measured is left out, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunery.profile import record
from tunery.profile.parts import AROUND, HELD, PARTS, PASSING
from tunery.report import format as show
from tunery.report.words import mapping
from tunery.run import Run

PRODUCTS = ("matrix", "adapter", "head", "attention")
"""The parts that multiply; each with the rate of the machine that it is compared with."""
SCOPES = {
    "linear": "linear layers",
    "adapter": "layers with an adapter",
    "layers": "norms, activations, sums",
    "attention": "attention",
    "rotary": "rotary",
}


@dataclass(frozen=True)
class Part:
    """One part of a step: seconds of a step, forward and backward."""

    name: str
    title: str
    what: str
    forward: float
    backward: float
    share: float

    @property
    def seconds(self) -> float:
        return self.forward + self.backward


def parts(profile: Mapping[str, Any]) -> list[Part]:
    """The parts of a step in the order of `PARTS`; their shares add up to one. A part that this version does not know is other."""
    step = mapping(profile.get("step"))
    whole = sum(sum(spent.values()) for spent in mapping(step.get("parts")).values())
    found: dict[str, dict[str, float]] = {}
    for name, spent in mapping(step.get("parts")).items():
        target = name if name in PARTS else "other"
        into = found.setdefault(target, {"forward": 0.0, "backward": 0.0})
        for way in into:
            into[way] += spent[way]
    return [
        Part(name, *PARTS[name], spent["forward"], spent["backward"], sum(spent.values()) / whole)
        for name in PARTS
        if (spent := found.get(name)) and whole
    ]


def products(profile: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each part that multiplies: floating point operations of a step, the rate that they reach, and that as a share of the machine's."""
    step, rates = mapping(profile.get("step")), machine_rates(profile)
    found = []
    for name in PRODUCTS:
        flops, seconds = (mapping(step.get(key)).get(name, 0.0) for key in ("flops", "product_seconds"))
        if flops and seconds:
            reached = flops / seconds
            share = reached / rates["matrix"] if rates.get("matrix") else None
            found.append({"title": PARTS[name][0], "flops": flops, "seconds": seconds, "rate": reached, "share": share})
    return found


def machine_rates(profile: Mapping[str, Any]) -> dict[str, float]:
    """Floating point operations a second by kind, in the type of the run's products; of one process where several share a CPU."""
    training, machine = (mapping(profile.get(key)) for key in ("training", "machine"))
    divided = training.get("processes", 1) if training.get("device") == "cpu" else 1
    return {kind: rate / divided for kind, rate in mapping(machine.get("rates")).items()}


def utilisation(profile: Mapping[str, Any]) -> float | None:
    """All floating point operations of products and attention in a step, over what the machine's matrix rate would do in its time."""
    step, rates = mapping(profile.get("step")), machine_rates(profile)
    if not step.get("seconds") or not rates.get("matrix"):
        return None
    return float(sum(mapping(step.get("flops")).values()) / step["seconds"] / rates["matrix"])


def stages(profile: Mapping[str, Any]) -> list[tuple[str, float, int | None, int | None]]:
    """(name, seconds, resident bytes at its end, at its height) of each stage; training in its parts, and what lies between the stages."""
    known, training = mapping(profile.get("stages")), mapping(profile.get("training"))
    found: list[tuple[str, float, int | None, int | None]] = []
    for name, stage in known.items():
        row = stage["seconds"], stage["end_bytes"], stage["peak_bytes"]
        trial, steps = mapping(training.get("trial")), training.get("steps_seconds", 0.0)
        if name != "train" or not steps:
            found.append((_STAGES.get(name, name), *row))
            continue
        own = training.get("processes", 1) == 1
        if trial:
            found.append(("trial of the largest batch", trial["seconds"], trial["end_bytes"], trial["peak_bytes"]))
        found.append(("training steps", steps, *(row[1:] if own else (None, None))))
        profiling = training.get("profiling_seconds", 0.0)
        found.append(("the profiler's own work", profiling, None, None))
        rest = "checkpoints, validation, imports" if own else "starting processes, checkpoints, validation"
        found.append((rest, max(0.0, row[0] - steps - profiling - trial.get("seconds", 0.0)), None, None))
    between = profile.get("whole_seconds", 0.0) - sum(stage["seconds"] for stage in known.values())
    if between > 0:
        found.append(("between the stages (imports too)", between, None, None))
    return found


_STAGES = {
    "start": "start: Python and imports",
    "prepare": "prepare: read and tokenise",
    "load": "load the model",
    "reference": "the reference's answers",
    "compare": "compare answers, baselines",
}


def memory(profile: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(part, bytes) of what the process holds at the height of a step; they add up to its resident size then."""
    found, machine = mapping(profile.get("memory")), mapping(profile.get("machine"))
    held, passing = mapping(found.get("held")), mapping(found.get("passing"))
    rows = [(title, held.get(name, 0) + passing.get(name, 0)) for name, title in HELD.items()]
    rows += [(title, passing.get(name, 0)) for name, title in PASSING.items()]
    beyond = found.get("resident_bytes", 0) - sum(size for _, size in rows)
    libraries = min(max(0, beyond), machine.get("library_bytes", 0))
    rows += [(AROUND["libraries"], libraries), (AROUND["rest"], max(0, beyond - libraries))]
    return [row for row in rows if row[1]]


def gather(run: Run) -> dict[str, Any]:
    """Everything that the page's template reads."""
    profile, report = record.read(run), mapping(run.read_json("report.json"))
    step, training = mapping(profile.get("step")), mapping(profile.get("training"))
    shown = parts(profile)
    return {
        "name": run.path.resolve().name,
        "report": {key: report.get(key) for key in ("model", "task", "method", "status")},
        "title": title(profile),
        "lead": lead(profile),
        "facts": _facts(profile, report),
        "stages": [(name, show.duration(s), show.size(end), show.size(peak)) for name, s, end, peak in stages(profile)],
        "stage_seconds": {name: seconds for name, seconds, _, _ in stages(profile)},
        "parts": [(p.title, p.what, _ms(p.forward), _ms(p.backward), _ms(p.seconds), show.percent(p.share)) for p in shown],
        "step_seconds": _ms(sum(p.seconds for p in shown)),
        "drawn_parts": shown,
        "products": [
            (p["title"], _flops(p["flops"], "FLOP"), _ms(p["seconds"]), _flops(p["rate"], "FLOP/s"), show.percent(p["share"]))
            for p in products(profile)
        ],
        "machine": mapping(profile.get("machine")).get("name"),
        "matrix_rate": _flops(machine_rates(profile).get("matrix"), "FLOP/s"),
        "dtype": training.get("dtype"),
        "processes": training.get("processes", 1),
        "device": training.get("device"),
        "memory": [(name, show.size(size)) for name, size in memory(profile)],
        "drawn_memory": memory(profile),
        "resident": show.size(mapping(profile.get("memory")).get("resident_bytes")),
        "kept": [
            (SCOPES.get(name, name), show.size(size))
            for name, size in sorted(mapping(mapping(profile.get("memory")).get("kept")).items(), key=lambda item: -item[1])
        ],
        "operations": [
            (
                o["name"],
                PARTS.get(o["part"], (o["part"],))[0],
                show.count(o["calls"]),
                _ms(o["seconds"]),
                show.percent(o["seconds"] / step["seconds"]),
            )
            for o in step.get("operations", [])
        ],
    }


def title(profile: Mapping[str, Any]) -> str:
    """The finding in one sentence."""
    shown = parts(profile)
    if not shown:
        return "No training step was profiled"
    longest = max((p for p in shown if p.name != "other"), key=lambda p: p.seconds)
    seconds = mapping(profile.get("step")).get("seconds")
    return f"A training step takes {_ms(seconds)}, and {show.percent(longest.share, 0)} of it is {_inside(longest.title)}"


def _inside(title: str) -> str:
    """A title within a sentence."""
    return title if title.startswith("Python") else title[0].lower() + title[1:]


def lead(profile: Mapping[str, Any]) -> str:
    """What was looked at, and what looking cost."""
    training, step = (mapping(profile.get(key)) for key in ("training", "step"))
    numbers = list(mapping(training.get("profiled_steps")))
    if not step or not numbers:
        return "The stages of the job are below. The run ended before the steps that were to be looked at."
    which = f"Step {numbers[0]} was" if len(numbers) == 1 else f"Steps {numbers[0]} to {numbers[-1]} were"
    text = f"{which} profiled; the figures are of one step, the mean of them."
    usual = training.get("median_step_seconds")
    if usual:
        text += f" The steps without the profiler took {_ms(usual)} (median)."
    return text


def _facts(profile: Mapping[str, Any], report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The few numbers under the headline: label, value, and what to add."""
    training = mapping(profile.get("training"))
    whole, reached, found = profile.get("whole_seconds"), utilisation(profile), mapping(profile.get("memory"))
    facts = [("The whole job", show.duration(whole), "from the command to the report")] if whole else []
    if training.get("steps_seconds") and whole:
        facts.append(
            ("Training steps", show.duration(training["steps_seconds"]), f"{show.percent(training['steps_seconds'] / whole, 0)} of the job")
        )
    if reached is not None:
        facts.append(("Matrix rate used", show.percent(reached, 0), "over a whole step"))
    if found:
        facts.append(("Memory in a step", show.size(found["resident_bytes"]), "at its height"))
    peak = mapping(report.get("train")).get("peak_memory_bytes")
    if peak:
        facts.append(("Peak of the training", show.size(peak), "trial and profiling included"))
    return facts


def _ms(seconds: Any) -> str:
    """Milliseconds below a second."""
    if not show.is_number(seconds) or not seconds:
        return show.DASH
    if seconds >= 1:
        return f"{seconds:.2f}{show.NARROW}s"
    return f"{1000 * seconds:.{0 if seconds >= 0.1 else 1 if seconds >= 0.001 else 3}f}{show.NARROW}ms"


def _flops(value: Any, unit: str) -> str:
    if not show.is_number(value):
        return show.DASH
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= scale:
            return f"{show.significant(value / scale)}{show.NARROW}{prefix}{unit}"
    return f"{show.significant(value)}{show.NARROW}{unit}"
