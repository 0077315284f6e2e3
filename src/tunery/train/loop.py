"""The training loop.

    for each step:  its rows → packs → loss of each pack / supervised weight of the whole step → gradients → clip → AdamW

The loss is normalised once, by the supervised weight of the whole optimiser step, so it does not matter into how many packs a step is
cut: eight packs of one row and one pack of eight rows give the same gradient.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from tunery import machine
from tunery.errors import Interrupted, RunError
from tunery.methods import Method, trainable
from tunery.progress import Progress
from tunery.run import Run, write_text
from tunery.sharding._engine import Engine
from tunery.train import checkpoint, parts
from tunery.train.checkpoint import State
from tunery.train.learners import Learner
from tunery.train.objective import Objective
from tunery.train.packs import TokenRow
from tunery.train.schedule import learning_rate
from tunery.train.steps import plan_steps
from tunery.train.trial import Pace, trial
from tunery.train.watch import Nobody, Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Rows(Protocol):
    """Tokenised rows: indexable, with their lengths and supervised weights known beforehand."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> TokenRow: ...
    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def supervised(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Settings:
    """The `train` part of a resolved recipe: nothing is left to be decided."""

    learning_rate: float
    epochs: float = 1.0
    max_steps: int | None = None
    rows_per_step: int | None = None
    tokens_per_step: int | None = None
    schedule: str = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float | None = 1.0
    gradient_checkpointing: bool = False
    validate_every: int | None = None
    early_stopping: int | None = None
    checkpoint_every: int = 200
    seed: int = 0
    autocast: bool = False
    """Compute in bfloat16 with float32 weights: for methods that train the base itself."""


def train(
    run: Run,
    model: PreTrainedModel,
    method: Method,
    options: Any,
    learner: Learner,
    rows: Rows,
    settings: Settings,
    progress: Progress,
    valid: Rows | None = None,
    base: str = "",
    engine: Engine | None = None,
    watch: Watch | None = None,
) -> State:
    """Train `model`, which `method.attach` has prepared, from the newest checkpoint in `run` or from the start.

    engine: what the processes share; None: this one is alone. Every process calls this with the same arguments, and the first one alone
    writes. watch: who looks on. Ends with a checkpoint of the last step. Raises Interrupted after a checkpoint when the user stops it, RunError when the loss is
    no longer a number.
    """
    engine, watch = engine or Engine(), watch or Nobody()
    first = engine.rank == 0
    steps = plan_steps(
        rows.lengths,
        epochs=settings.epochs,
        seed=settings.seed,
        rows_per_step=settings.rows_per_step,
        tokens_per_step=settings.tokens_per_step,
        max_steps=settings.max_steps,
    )
    found = checkpoint.newest(run.checkpoints)
    if found is not None:
        method.load(model, found / "learned")  # before the weights are divided
    model.train()
    if method.TRAINS_BASE and model.device.type == "cpu":
        machine.keep_freed_memory()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    objective = Objective(model, learner, settings.autocast)
    engine.shard(objective, model)
    groups = _parameter_groups(method, model, options, trainable(model), settings)
    engine.begin(groups, settings.learning_rate, settings.weight_decay, settings.clip)
    peak_rates = [group["lr"] for group in engine.groups]
    state = State()
    checkpoint.seed(settings.seed, engine, int(found.name.removeprefix("step-")) if found else 0)
    if found is not None:
        state = checkpoint.load(found, engine)
        progress.say(f"resuming after step {state.step} of {len(steps)}")
    if first:
        _cut_metrics(run, state.step)

    extra_loss, after_step = getattr(method, "extra_loss", None), getattr(method, "after_step", None)

    def gradient(chosen: np.ndarray) -> float:
        begin_step(engine, learner, rows, chosen)
        loss = gradient_of(engine, learner, model, rows, chosen)
        if extra_loss and (extra := extra_loss(model, options)) is not None:
            extra.backward()
        return loss

    def batches(chosen: np.ndarray) -> list[Any]:
        begin_step(engine, learner, rows, chosen)
        return [turn.batch for turn in turns(engine, learner, model, rows, chosen)]

    def save() -> None:
        checkpoint.save(run.checkpoints, state, engine, lambda folder: method.save(model, options, folder, base))

    if state.step == 0 and steps:
        with watch.trial():
            held = trial(steps, rows.lengths, batches, lambda batch, last: engine.backward(engine.loss(batch, last)[0]), engine)
        if first:
            run.write_json("plan.json", {"peak_memory_bytes": held})
    plan = (run.read_json("plan.json") or {}) if first else {}
    pace = Pace([int(rows.lengths[s].sum()) for s in steps[state.step :]])
    validate_every = settings.validate_every or (math.ceil(len(steps) / max(1.0, settings.epochs)) if valid else 0)
    before, started = state.seconds, time.monotonic()
    saved, stopped = state.step, False
    total_tokens = sum(int(rows.lengths[s].sum()) for s in steps)
    with _stop_requested() as asked, run.metrics_file.open("a", encoding="utf-8") if first else nullcontext() as metrics:
        for number in range(state.step + 1, len(steps) + 1):
            if _out_of_patience(state, settings):
                break
            rate = learning_rate(number, len(steps), settings.learning_rate, settings.schedule, settings.warmup)
            for group, peak in zip(engine.groups, peak_rates, strict=True):
                group["lr"] = rate * peak / settings.learning_rate
            chosen = steps[number - 1]
            with watch.step(number, len(steps)), pace.step():
                loss = gradient(chosen)
                norm = engine.step()
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise _diverged(f"step {number}: the loss is {loss} and the gradient's norm {norm}", settings)
                if after_step:
                    after_step(model, options, number, len(steps))
                engine.clear()

            if first and "seconds" not in plan and (seconds := pace.known()) is not None:
                plan = {**plan, "seconds": round(before + seconds, 3)}
                run.write_json("plan.json", plan)
            state.step, state.final_loss = number, loss
            state.first_loss = loss if state.first_loss is None else state.first_loss
            state.rows += len(chosen)
            tokens, supervised = int(rows.lengths[chosen].sum()), float(rows.supervised[chosen].sum())
            state.tokens += tokens
            state.supervised_tokens += supervised
            line = {
                "step": number,
                "loss": loss,
                "learning_rate": rate,
                "grad_norm": norm,
                "tokens": tokens,
                "supervised_tokens": supervised,
            }
            if valid is not None and (number % validate_every == 0 or number == len(steps)):
                line["valid_loss"] = validate(engine, learner, model, valid)
                if not math.isfinite(line["valid_loss"]):
                    raise _diverged(f"step {number}: the validation loss is {line['valid_loss']}", settings)
                _note_validation(state, line["valid_loss"], number)
            state.seconds = before + time.monotonic() - started
            if metrics:
                metrics.write(json.dumps({**line, "seconds": round(state.seconds, 3)}, allow_nan=False) + "\n")
                metrics.flush()
            speed = state.tokens / max(state.seconds, 1e-9)
            shown = f"step {number}/{len(steps)}  loss {loss:.4f}" + (f"  valid {line['valid_loss']:.4f}" if "valid_loss" in line else "")
            progress.show("train", state.tokens, total_tokens, f"{shown}  {speed:.0f} tokens/s")
            stopped = engine.largest(asked()) > 0  # the processes stop after the same step
            if number % settings.checkpoint_every == 0 or state.best_step == number or stopped:
                save()
                saved = number
            if stopped and number < len(steps):
                raise Interrupted(f"stopped after step {number} of {len(steps)}; go on with `tunery resume {run.path}`")
        if not engine.finite():
            raise _diverged("after the last step some weights are no numbers", settings)
        if saved != state.step:
            save()
        if engine.largest(asked()) > 0:
            raise Interrupted(f"stopped after training; go on with `tunery resume {run.path}`")
        state.seconds = before + time.monotonic() - started
    if (kept := kept_step(state, settings)) != state.step:
        if engine.alone:
            method.load(model, run.checkpoints / f"step-{kept}" / "learned")
        progress.say(f"kept the weights of step {kept}, where valid_loss was lowest ({state.best_valid_loss:.4f})")
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    model.eval()
    return state


def kept_step(state: State, settings: Settings) -> int:
    """The step whose weights are the result: the last one, or with early stopping the one that validated best."""
    return state.best_step if settings.early_stopping and state.best_step is not None else state.step


def accumulate(model: PreTrainedModel, learner: Learner, rows: Sequence[TokenRow], supervised: float, autocast: bool = False) -> float:
    """Add the gradient of the rows' mean loss to the parameters; the loss, in the task's unit a supervised item. In one process.

    `supervised` is the weight of the whole optimiser step, of which `rows` may be a part.
    """
    engine = Engine()
    engine.shard(Objective(model, learner, autocast), model)
    return _accumulate(engine, parts.batches(engine, learner, model, rows, rows[0]), supervised)


def gradient_of(engine: Engine, learner: Learner, model: PreTrainedModel, rows: Rows, chosen: np.ndarray) -> float:
    """Add the gradient of a whole step's mean loss, of which this process computes its part; the loss of the whole step."""
    return _accumulate(engine, turns(engine, learner, model, rows, chosen), float(rows.supervised[chosen].sum()))


def turns(engine: Engine, learner: Learner, model: PreTrainedModel, rows: Rows, chosen: np.ndarray) -> Iterator[parts.Turn]:
    """This process's batches of a step, as many as every other process has."""
    own = [rows[i] for i in parts.part_of(chosen, rows.lengths, engine.rank, engine.world).tolist()]
    return parts.batches(engine, learner, model, own, rows[int(chosen[0])])


def _accumulate(engine: Engine, batches: Iterator[parts.Turn], supervised: float) -> float:
    total = 0.0
    for turn in batches:
        nats, _ = engine.loss(turn.batch, turn.last)
        engine.backward(nats / supervised if turn.counts else nats * 0)
        total += nats.item() if turn.counts else 0.0
    return engine.summed(total)[0] / supervised


def validate(engine: Engine, learner: Learner, model: PreTrainedModel, rows: Rows) -> float:
    """The mean loss over all rows, in the task's unit a supervised item, without dropout and without touching the random state."""
    model.eval()
    nats, weight = 0.0, 0.0
    begin_step(engine, learner, rows, np.arange(len(rows)))
    with torch.no_grad():
        for turn in parts.all_rows(engine, learner, model, rows):
            n, w = engine.loss(turn.batch)
            if turn.counts:
                nats, weight = nats + n.item(), weight + w.item()
    model.train()
    nats, weight = engine.summed(nats, weight)
    return nats / weight


def begin_step(engine: Engine, learner: Learner, rows: Rows, chosen: np.ndarray) -> None:
    """Let a learner look at the whole step (`chosen`: numbers of `rows`, over all processes) before its rows are cut into batches."""
    begin = getattr(learner, "begin_step", None)
    if begin is not None:
        with torch.no_grad():
            engine.inside(lambda model: begin(model, rows, chosen))


def _parameter_groups(
    method: Method, model: PreTrainedModel, options: Any, parameters: dict[str, torch.nn.Parameter], settings: Settings
) -> list[dict[str, Any]]:
    """What the optimiser is given: one group, or those that the method wants, whose rates the schedule scales together."""
    own = getattr(method, "parameter_groups", None)
    if own is None:
        return [{"params": list(parameters.values())}]
    groups: list[dict[str, Any]] = own(model, options, settings.learning_rate, settings.weight_decay)
    return groups


def _diverged(what: str, settings: Settings) -> RunError:
    rate = f"lower train.learning_rate (now {settings.learning_rate:g})"
    return RunError(f"{what}; {rate} or set train.precision to fp32, then train again")


def _note_validation(state: State, valid_loss: float, step: int) -> None:
    if state.best_valid_loss is None or valid_loss < state.best_valid_loss:
        state.best_step, state.best_valid_loss, state.validations_since_best = step, valid_loss, 0
    else:
        state.validations_since_best += 1


def _out_of_patience(state: State, settings: Settings) -> bool:
    return settings.early_stopping is not None and state.validations_since_best >= settings.early_stopping


def _cut_metrics(run: Run, step: int) -> None:
    """Forget the lines of steps that a resumed run does again."""
    kept = [line for line in run.metrics() if line["step"] <= step]
    write_text(run.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Ctrl-C or a polite kill lets the step end; a second Ctrl-C ends at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs the thread stops it
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
