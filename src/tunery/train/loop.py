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

from tunery.errors import Interrupted, RunError
from tunery.methods import Method, trainable
from tunery.progress import Progress
from tunery.run import Run, write_text
from tunery.train import checkpoint
from tunery.train.checkpoint import State
from tunery.train.learners import Learner
from tunery.train.packs import TokenRow
from tunery.train.schedule import learning_rate
from tunery.train.steps import plan_steps
from tunery.train.trial import trial

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
) -> State:
    """Train `model`, which `method.attach` has prepared, from the newest checkpoint in `run` or from the start.

    Ends with a checkpoint of the last step. Raises Interrupted after a checkpoint when the user stops it, RunError when the loss is no
    longer a number.
    """
    parameters = trainable(model)
    groups = _parameter_groups(method, model, options, parameters, settings)
    # Fused: one kernel for all parameters; the default's loop over them took a fifth of a step of a LoRA run on a CPU.
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    steps = plan_steps(
        rows.lengths,
        epochs=settings.epochs,
        seed=settings.seed,
        rows_per_step=settings.rows_per_step,
        tokens_per_step=settings.tokens_per_step,
        max_steps=settings.max_steps,
    )
    torch.manual_seed(settings.seed)
    state = State()
    if (found := checkpoint.newest(run.checkpoints)) is not None:
        state = checkpoint.load(found, parameters, optimizer, lambda folder: method.load(model, folder))
        progress.say(f"resuming after step {state.step} of {len(steps)}")
    _cut_metrics(run, state.step)
    model.train()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()

    def gradient(chosen: np.ndarray) -> float:
        begin_step(model, learner, rows, chosen, settings.autocast)
        part = [rows[i] for i in chosen.tolist()]
        return accumulate(model, learner, part, float(rows.supervised[chosen].sum()), settings.autocast)

    def save() -> None:
        checkpoint.save(run.checkpoints, state, parameters, optimizer, lambda folder: method.save(model, options, folder, base))

    if state.step == 0 and steps:
        run.write_json("plan.json", trial(steps, rows.lengths, gradient, parameters.values()))
    validate_every = settings.validate_every or (math.ceil(len(steps) / max(1.0, settings.epochs)) if valid else 0)
    before, started = state.seconds, time.monotonic()
    saved = state.step
    total_tokens = sum(int(rows.lengths[s].sum()) for s in steps)
    with _stop_requested() as stopped, run.metrics_file.open("a", encoding="utf-8") as metrics:
        for number in range(state.step + 1, len(steps) + 1):
            if _out_of_patience(state, settings):
                break
            rate = learning_rate(number, len(steps), settings.learning_rate, settings.schedule, settings.warmup)
            for group, peak in zip(optimizer.param_groups, peak_rates, strict=True):
                group["lr"] = rate * peak / settings.learning_rate
            chosen = steps[number - 1]
            loss = gradient(chosen)
            norm = _clip(parameters.values(), settings.clip)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise _diverged(f"step {number}: the loss is {loss} and the gradient's norm {norm}", settings)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

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
                line["valid_loss"] = validate(model, learner, valid, settings.autocast)
                if not math.isfinite(line["valid_loss"]):
                    raise _diverged(f"step {number}: the validation loss is {line['valid_loss']}", settings)
                _note_validation(state, line["valid_loss"], number)
            state.seconds = before + time.monotonic() - started
            metrics.write(json.dumps({**line, "seconds": round(state.seconds, 3)}, allow_nan=False) + "\n")
            metrics.flush()
            speed = state.tokens / max(state.seconds, 1e-9)
            shown = f"step {number}/{len(steps)}  loss {loss:.4f}" + (f"  valid {line['valid_loss']:.4f}" if "valid_loss" in line else "")
            progress.show("train", state.tokens, total_tokens, f"{shown}  {speed:.0f} tokens/s")
            if number % settings.checkpoint_every == 0 or state.best_step == number or stopped():
                save()
                saved = number
            if stopped() and number < len(steps):
                raise Interrupted(f"stopped after step {number} of {len(steps)}; go on with `tunery resume {run.path}`")
        if not all(bool(torch.isfinite(p).all()) for p in parameters.values()):
            raise _diverged("after the last step some weights are no numbers", settings)
        if saved != state.step:
            save()
        if stopped():
            raise Interrupted(f"stopped after training; go on with `tunery resume {run.path}`")
        state.seconds = before + time.monotonic() - started
    if settings.early_stopping and state.best_step is not None and state.best_step != state.step:
        method.load(model, run.checkpoints / f"step-{state.best_step}" / "learned")
        progress.say(f"kept the weights of step {state.best_step}, where valid_loss was lowest ({state.best_valid_loss:.4f})")
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    model.eval()
    return state


def accumulate(model: PreTrainedModel, learner: Learner, rows: Sequence[TokenRow], supervised: float, autocast: bool = False) -> float:
    """Add the gradient of the rows' mean loss to the parameters; the loss, in the task's unit a supervised item.

    `supervised` is the weight of the whole optimiser step, of which `rows` may be a part.
    """
    total = 0.0
    for batch in learner.batches(model, rows):
        with computing(model, autocast):
            nats, _ = learner.loss(model, batch)
        (nats / supervised).backward()
        total += nats.item()
    return total / supervised


def validate(model: PreTrainedModel, learner: Learner, rows: Rows, autocast: bool = False) -> float:
    """The mean loss over all rows, in the task's unit a supervised item, without dropout and without touching the random state."""
    model.eval()
    nats, weight = 0.0, 0.0
    begin_step(model, learner, rows, np.arange(len(rows)), autocast)
    with torch.no_grad(), computing(model, autocast):
        for batch in learner.batches(model, (rows[i] for i in range(len(rows)))):
            n, w = learner.loss(model, batch)
            nats, weight = nats + n.item(), weight + w.item()
    model.train()
    return nats / weight


def begin_step(model: PreTrainedModel, learner: Learner, rows: Rows, chosen: np.ndarray, autocast: bool = False) -> None:
    """Let a learner look at the whole step (`chosen`: numbers of `rows`, over all processes) before its rows are cut into batches."""
    begin = getattr(learner, "begin_step", None)
    if begin is not None:
        with torch.no_grad(), computing(model, autocast):
            begin(model, rows, chosen)


def computing(model: PreTrainedModel, autocast: bool) -> Any:
    """bfloat16 for what is safe in it, where `autocast` asks for that."""
    return torch.autocast(model.device.type, torch.bfloat16) if autocast else nullcontext()


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


def _clip(parameters: Any, limit: float | None) -> float:
    """The gradient's Euclidean norm before clipping it to `limit`."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, limit if limit is not None else math.inf))


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
