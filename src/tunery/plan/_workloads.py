"""From a resolved recipe, its tokenised rows and a model's config to what a method has to do: a `Workload`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from tunery.kernels import library
from tunery.kernels.fused import fuse
from tunery.methods import Method, _low_rank
from tunery.models.heads import Head
from tunery.models.load import automatic_class, quiet_transformers
from tunery.plan._counting import count, height, with_layers
from tunery.plan.workload import Workload
from tunery.tasks import Task
from tunery.train import attention, forward, learners
from tunery.train.learners import positions
from tunery.train.steps import plan_steps

SAMPLED = 24
"""Steps whose batches are really made; the others are taken to be like them."""
POINTS = 3
"""Batches of different length that are counted; between them a line is drawn."""


@dataclass(frozen=True)
class Job:
    """What does not depend on the method: the model's config, the task, the rows and how they are cut into steps."""

    config: Any
    dtype: torch.dtype
    task: Task
    task_options: Any
    rows: Any
    settings: Any
    checkpointing: bool = False
    test_rows: int = 0
    test_tokens: int = 0
    new_tokens: int = 0


def workload(job: Job, method: Method, options: Any) -> Workload:
    """What training `job` with this method takes. Raises RuntimeError or NotImplementedError for a method that needs real weights."""
    steps = plan_steps(
        job.rows.lengths,
        epochs=job.settings.epochs,
        seed=job.settings.seed,
        rows_per_step=job.settings.rows_per_step,
        tokens_per_step=job.settings.tokens_per_step,
        max_steps=job.settings.max_steps,
    )
    learner: Any = learners.get(job.task, job.task_options, getattr(options, "dropout", 0) == 0)
    rows = _with_reference(job, learner)
    build = _builder(job, method, options)
    with torch.device("meta"):
        one, two = (build(with_layers(job.config, n)) for n in (1, 2))
    batches, sizes = _batches(learner, one, rows, steps, job.rows.lengths)
    order = sorted(batches, key=positions)
    chosen = [order[round(k * (len(order) - 1) / (POINTS - 1))] for k in range(POINTS)]
    chosen = list({positions(b): b for b in chosen}.values())
    autocast = job.dtype if method.TRAINS_BASE and job.dtype.itemsize == 2 else None
    trained = _builder(replace(job, dtype=torch.float32) if autocast else job, method, options)
    counts = count(job.config, trained, [partial(_loss, learner, b) for b in chosen], autocast)
    text = job.config.get_text_config()
    several = _several(learner, one, rows, steps, job.rows.lengths)
    # The whole model for the memory: what is alive at the height need not be on a line with what is at that of a shallower one.
    with torch.device("meta"):
        full = trained(with_layers(job.config, text.num_hidden_layers))
    highest = height(full, partial(_loss, learner, chosen[-1]), int(text.vocab_size), several, autocast)
    del full
    layers = int(text.num_hidden_layers)

    def whole(measure: Callable[[Any], int]) -> int:
        return measure(one) + (measure(two) - measure(one)) * (layers - 1)

    width = job.dtype.itemsize
    learned = whole(lambda m: sum(p.numel() for p in m.parameters() if p.requires_grad))
    every = whole(lambda m: sum(p.numel() for p in m.parameters()))
    base = every if method.TRAINS_BASE else every - learned
    linear = whole(lambda m: sum(x.weight.numel() for x in _linear(m)))
    layer = sum(x.weight.numel() for x in _linear(two)) - sum(x.weight.numel() for x in _linear(one))
    base_bytes, mapped, copied, recast = base * width, 0, 0, 0
    if method.TRAINS_BASE:
        base_bytes = base * 4
    elif getattr(method, "QUANTISES", False):
        # 4 bits, and for each 64 of them a scale: float32, or 8 bits with one float32 for 256 (Dettmers et al. 2023, QLoRA, section 3).
        scale = (1 / 64 + 4 / (64 * 256)) if getattr(options, "double_quantisation", True) else 4 / 64
        base_bytes, mapped = int(linear * (0.5 + scale)) + (base - linear) * width, linear * width
        if not (width == 2 and library.tiles() and library.enabled()):  # the kernel in tiles reads four bits
            largest = max((x.weight.numel() for x in _linear(one)), default=0)
            copied, recast = largest * width, int(linear * 2 * (0.5 + width))
    return Workload(
        base_parameters=base,
        learned_parameters=learned,
        base_bytes=base_bytes,
        mapped_bytes=mapped,
        copied_bytes=copied,
        largest_layer_bytes=layer * width,
        counted=tuple(sorted(((positions(b), c) for b, c in zip(chosen, counts, strict=True)), key=lambda found: found[0])),
        height=highest,
        several=several,
        batches=tuple(sorted(sizes.items())),
        steps=len(steps),
        tokens=int(sum(job.rows.lengths[s].sum() for s in steps)),
        recast_bytes=recast,
        test_rows=job.test_rows,
        test_tokens=job.test_tokens,
        new_tokens=job.new_tokens,
        checkpointing=job.checkpointing,
        autocast=autocast is not None,
    )


def _loss(learner: Any, batch: Any, model: Any) -> torch.Tensor:
    value: torch.Tensor = learner.loss(model, batch)[0]
    return value


def _builder(job: Job, method: Method, options: Any) -> Callable[[Any], Any]:
    head = Head(job.task.FORM, tuple(job.task_options.labels)) if job.task.FORM in ("sequence", "token") else None
    implementation = "sdpa" if head else attention.register()

    def build(config: Any) -> Any:
        for key, value in (head.config() if head else {}).items():
            setattr(config, key, value)
        if head and config.pad_token_id is None:
            config.pad_token_id = 0
        config.get_text_config().use_cache = False
        with quiet_transformers():
            model = fuse(automatic_class(head).from_config(config, dtype=job.dtype, attn_implementation=implementation))
        model.new_layers = ()
        model.requires_grad_(False)
        if getattr(method, "QUANTISES", False):  # on shapes alone nothing can be quantised; the products are LoRA's
            model = _low_rank.adapt(model, options, 0, options.dora)
        else:
            model = method.attach(model, options, 0)
        if method.TRAINS_BASE:
            model = model.to(job.dtype)  # what autocast computes in
        model.train()
        if job.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        forward._compared.add(model)  # on shapes alone there are no logits to compare
        return model

    return build


def _with_reference(job: Job, learner: Any) -> Any:
    """Preference pairs need what a reference says of them, which is not known yet: any numbers serve for shapes."""
    if job.task.FORM != "pairs":
        return job.rows
    from tunery.train.preference_pairs import Pairs

    learner.baseline, learner.nll_scale = 0.0, 1.0
    nothing = np.zeros((len(job.rows), 2), np.float32)
    return Pairs(job.rows, job.task_options, {"matched": nothing, "mismatched": nothing})


def _batches(learner: Any, model: Any, rows: Any, steps: list[np.ndarray], lengths: np.ndarray) -> tuple[list[Any], dict[int, float]]:
    """Some batches, with the run's longest among them; and how many of each size the whole run has."""
    some = sorted({int(n) for n in np.linspace(0, len(steps) - 1, min(SAMPLED, len(steps)))})
    found = [b for n in some for b in learner.batches(model, [rows[int(i)] for i in steps[n]])]
    share = sum(int(lengths[s].sum()) for s in steps) / sum(int(lengths[steps[n]].sum()) for n in some)
    sizes: Counter[int] = Counter(positions(b) for b in found)
    largest = steps[int(np.argmax([lengths[s].max() for s in steps]))]
    return found + list(learner.batches(model, [rows[int(i)] for i in largest])), {size: n * share for size, n in sizes.items()}


def _several(learner: Any, model: Any, rows: Any, steps: list[np.ndarray], lengths: np.ndarray) -> bool:
    """Whether the step with most tokens has more than one batch."""
    largest = steps[int(np.argmax([lengths[s].sum() for s in steps]))]
    return len(list(learner.batches(model, [rows[int(i)] for i in largest]))) > 1


def _linear(model: Any) -> list[Any]:
    """The base's own linear layers."""
    output = model.get_output_embeddings()
    adapted = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not output]
    low_rank = [m for m in model.modules() if type(m).__name__ == "LoraLinear"]
    inner = {id(x) for m in low_rank for x in m.modules()}
    return [m for m in adapted if id(m) not in inner] + low_rank
