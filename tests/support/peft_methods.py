"""Models prepared by one of PEFT's methods, and the same by PEFT itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from tunery import methods
from tunery.methods import trainable
from tunery.models.heads import Head
from tunery.models.load import load_model
from tunery.train import attention

INJECTED = ("ia3", "oft", "vera", "loha", "lokr", "miss", "ln_tuning", "adalora")
VIRTUAL = ("prompt", "prefix", "p_tuning")
METHODS = (*INJECTED, *VIRTUAL)
HEADS = {"sequence": Head("sequence", ("no", "yes")), "token": Head("token", ("O", "B", "I"))}
IDS = torch.arange(3, 23)[None]


def attached(folder: Path, name: str, seed: int = 0, dtype: str = "float32", head: Head | None = None, **options: Any) -> Any:
    """A model prepared as in training, and the options."""
    method = methods.get(name)
    chosen = method.Options.model_validate(options)
    return method.attach(load_model(folder, dtype, attention="sdpa" if head else attention.register(), head=head), chosen, seed), chosen


def scramble(model: Any, seed: int = 7) -> None:
    """Away from a start at which many methods change nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))


def by_peft(folder: Path, adapter: Path, head: Head | None = None) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load_model(folder, head=head), str(adapter)).eval()


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Of the real tokens: PEFT gives those of its virtual tokens as well."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found[:, -ids.shape[1] :] if found.dim() == 3 else found
