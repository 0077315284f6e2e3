"""Twenty optimiser steps by our own methods and by PEFT's, from the same start on the same rows: the losses must be the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rows import random_rows

from tunery.methods import trainable
from tunery.models.load import load_model
from tunery.tasks import get
from tunery.train import attention, learners
from tunery.train.loop import accumulate

STEPS, RATE, DECAY = 20, 1e-3, 0.01


def peft_name(name: str) -> str:
    """What PEFT calls the parameter that we call `name`."""
    for ours, theirs in (
        ("lora_A", "lora_A.default.weight"),
        ("lora_B", "lora_B.default.weight"),
        ("lora_magnitude_vector", "lora_magnitude_vector.default.weight"),
        ("rows", "token_adapter.trainable_tokens_delta.default"),
    ):
        if name.endswith("." + ours):
            return f"base_model.model.{name.removesuffix(ours)}{theirs}"
    head, _, leaf = name.rpartition(".")
    return f"base_model.model.{head}.modules_to_save.default.{leaf}"


def our_losses(model: Any, method: Any, options: Any, autocast: bool = False) -> list[float]:
    groups = method.parameter_groups(model, options, RATE, DECAY)
    optimizer = torch.optim.AdamW(groups)
    model.train()
    losses = []
    for n in range(STEPS):
        rows = random_rows(4, seed=n)
        losses.append(accumulate(model, learners.get(get("chat")), rows, float(rows.supervised.sum()), autocast))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def peft_losses(wrapped: Any, like: Any, groups: Any = None) -> list[float]:
    """`like`: our own model, as it begins: its values are copied into PEFT's."""
    theirs = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    mine = trainable(like)
    assert {peft_name(n) for n in mine} == set(theirs)
    with torch.no_grad():
        for n, p in mine.items():
            theirs[peft_name(n)].copy_(p)
    optimizer = torch.optim.AdamW(groups(wrapped) if groups else [theirs[peft_name(n)] for n in mine], lr=RATE, weight_decay=DECAY)
    wrapped.train()
    losses = []
    for step in range(STEPS):
        rows = random_rows(4, seed=step)
        total = torch.zeros(())
        for row in rows:
            ids = torch.from_numpy(row.tokens.astype(np.int64))[None]
            nats = torch.nn.functional.cross_entropy(wrapped(input_ids=ids).logits[0, :-1].float(), ids[0, 1:], reduction="none")
            total = total + (nats * torch.from_numpy(row.weights[1:])).sum()
        loss = total / float(rows.supervised.sum())
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def ours(folder: Path, method: Any, options: Any, dtype: str = "float32", stirred: bool = False) -> Any:
    """A model that the method has prepared, as training has it. `stirred`: with a B that is not zero, so that all parts matter at once."""
    model = method.attach(load_model(folder, dtype, attention=attention.register()), options, 0)
    with torch.no_grad():
        for name, p in trainable(model).items():
            if stirred and name.endswith("lora_B"):
                p.normal_(0, 0.05, generator=torch.Generator().manual_seed(p.numel()))
    return model


def quantised_by_transformers(folder: Path, dtype: str = "float32") -> Any:
    """The base in four bits as any user of transformers loads it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=getattr(torch, dtype)
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), quantization_config=config)
    for module in model.modules():  # in evaluation on a CPU it would compute in bfloat16, and exactness is about float32
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


@dataclass(frozen=True)
class Run:
    """What twenty steps leave behind: the loss of each, the logits of rows that were not trained on, and the trained values by PEFT's names."""

    losses: list[float]
    logits: torch.Tensor
    trained: dict[str, torch.Tensor]


def our_run(folder: Path, method: Any, options: Any, dtype: str) -> Run:
    model = ours(folder, method, options, dtype, stirred=True)
    losses = our_losses(model, method, options)
    return Run(losses, held_out_logits(model), {peft_name(n): p.detach() for n, p in trainable(model).items()})


def peft_run(wrapped: Any, like: Any) -> Run:
    losses = peft_losses(wrapped, like)
    return Run(losses, held_out_logits(wrapped), {n: p.detach() for n, p in wrapped.named_parameters() if p.requires_grad})


def held_out_logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 440, (16, 32), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
    return found.float()


def distances(one: Run, exact: Run) -> tuple[float, float]:
    """Of the logits and of the trained values: the norm of the difference."""
    values = sum(float((p.float() - exact.trained[n].float()).square().sum()) for n, p in one.trained.items())
    return float((one.logits - exact.logits).norm()), values**0.5


def assert_same_runs(ours32: Run, exact: Run, ours16: Run, peft16: Run) -> None:
    """Our run and PEFT's in float32, then both in bfloat16.

    Every loss is equal to 1e-5 in float32. In bfloat16 neither the logits nor the trained values are further from PEFT's in float32 than
    1.2 x PEFT's own. Their norms are over thousands of values and differ by a few hundredths from one machine to the next; a distance of
    twenty losses lies anywhere between 0.7 and 1.4 of the other side's, for either side.
    """
    assert set(ours32.trained) == set(exact.trained)
    np.testing.assert_allclose(ours32.losses, exact.losses, atol=1e-5, rtol=0)
    for own, theirs in zip(distances(ours16, exact), distances(peft16, exact), strict=True):
        assert 0 < own <= 1.2 * theirs, (own, theirs)
