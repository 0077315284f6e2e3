"""A task's head beside any method: trained whole, in float32."""

from __future__ import annotations

from typing import Any

import torch

from tunery.models.heads import head_modules


def train_heads(model: Any) -> list[str]:
    """Make the model's head, where it has one, trainable; the names of its modules.

    It is float32 whatever the model is, since a small step is lost in bfloat16, so what it is given is cast.
    """
    names = head_modules(model)
    for name in names:
        head = model.get_submodule(name)
        head.float().requires_grad_(True)
        head.register_forward_pre_hook(_in_float32)
    return names


def _in_float32(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)
