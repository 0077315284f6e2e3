"""A small training batch of known shape, to compare what is counted with what a machine really takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tunery import methods, tasks
from tunery.kernels.fused import fuse
from tunery.plan._counting import count, height
from tunery.plan.workload import Count
from tunery.train import attention, forward, learners

VOCABULARY = 49_152


def batch(dtype: torch.dtype, tokens: int, full: bool = False, wider: int = 1) -> tuple[Callable[[], Any], Count]:
    """(a function that computes one batch with its gradient, what is counted of it): LoRA on four of SmolLM2-135M's layers.

    full: full tuning instead, of float32 weights in products of `dtype`. wider: all widths times that.
    """
    config, build, loss = _parts(
        torch.float32 if full else dtype, tokens, layers=4, vocabulary=1024, wider=wider, method="full" if full else "lora"
    )
    counted = count(config, build, [loss], dtype if full else None)[0]
    with torch.random.fork_rng(devices=[]):
        model = build(config)

    def compute() -> None:
        with torch.autocast("cpu", dtype) if full else nullcontext():
            value = loss(model)
        value.backward()

    return compute, counted


def growth(dtype: torch.dtype, tokens: int) -> tuple[int, int]:
    """(bytes that this process really grows by in some batches, bytes that are counted): the allocator's part. In a fresh process.

    With 12 layers and the whole vocabulary, since what is left between large and small pieces is what is measured.
    """
    import psutil

    from tunery.machine import peak_memory

    config, build, loss = _parts(dtype, tokens, layers=12, vocabulary=VOCABULARY)
    model = build(config)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    before = psutil.Process().memory_info().rss
    for _ in range(4):
        loss(model).backward()
    grown = peak_memory() - before
    with torch.device("meta"):
        shapes = build(config)
    return grown, height(shapes, loss, VOCABULARY, again=True).total


def _parts(
    dtype: torch.dtype, tokens: int, layers: int, vocabulary: int, wider: int = 1, method: str = "lora"
) -> tuple[Any, Callable[[Any], Any], Callable[[Any], torch.Tensor]]:
    """(config, build, loss) as `count` wants them."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    attention.register()
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=576 * wider,
        intermediate_size=1536 * wider,
        num_hidden_layers=layers,
        num_attention_heads=9 * wider,
        num_key_value_heads=3 * wider,
        tie_word_embeddings=True,
    )
    config.dtype = dtype
    row = SimpleNamespace(tokens=np.arange(tokens + 1, dtype=np.int32) % 1000, weights=np.r_[0, np.ones(tokens)].astype(np.float32))
    learner, chosen = learners.get(tasks.get("chat")), methods.get(method)

    def build(config: Any) -> Any:
        model = fuse(AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAME))
        model.requires_grad_(False)
        model = chosen.attach(model, chosen.Options(), 0).train()
        forward._compared.add(model)  # on shapes alone there are no logits to compare
        return model

    def loss(model: Any) -> torch.Tensor:
        return learner.loss(model, next(iter(learner.batches(model, [row]))))[0]

    return config, build, loss
