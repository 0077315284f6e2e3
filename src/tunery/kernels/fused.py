"""A model's own layers changed for their fused form: normalisation, the gated feed-forward layer, rotary positions, linear layers.

A layer is changed only where its code, run on a sample, gives what the fused form gives; so any architecture whose layers mean the same is
faster, and any other is left as it is. The change is the layer's class alone: weights, names and what is saved stay.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tunery.kernels import library
from tunery.kernels.gated import swiglu
from tunery.kernels.norm import rms_norm
from tunery.kernels.rotary import possible, rotate
from tunery.kernels.tile_linear import TileLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fuse(model: PreTrainedModel) -> PreTrainedModel:
    """Change what can be changed, in place. Does nothing where there is no library."""
    if library.library() is None:
        return model
    if library.tiles():
        heads = (model.get_input_embeddings(), model.get_output_embeddings())
        for module in model.modules():
            if type(module) is nn.Linear and module not in heads:
                module.__class__ = TileLinear
    classes: dict[tuple[type, Any], type] = {}
    for module in model.modules():
        cls: Any = type(module)
        for kind in (_norm, _gated):
            key = (cls, getattr(module, "variance_epsilon", None))
            if key not in classes:
                classes[key] = kind(module) or cls
            if classes[key] is not cls:
                module.__class__ = classes[key]
                break
            del classes[key]
    _rotary(sys.modules[type(model).__module__])
    return model


def _norm(module: Any) -> type | None:
    """The fused class of an RMS normalisation."""
    cls: Any = type(module)
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not (isinstance(weight, nn.Parameter) and weight.dim() == 1 and isinstance(eps, float) and "RMSNorm" in cls.__name__):
        return None

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states: (..., width)."""
        if library.usable(hidden_states, self.weight):
            return rms_norm(hidden_states, self.weight, self.variance_epsilon)
        result: torch.Tensor = cls.forward(self, hidden_states)
        return result

    fused: type = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    sample = cls.__new__(cls)
    nn.Module.__init__(sample)
    sample.__dict__.update({k: v for k, v in module.__dict__.items() if not k.startswith("_")})
    width = len(weight)
    with torch.device("cpu"):
        sample.weight = nn.Parameter(1 + torch.arange(width) % 7 / 7)
        x = torch.sin(torch.arange(3 * width, dtype=torch.float32)).view(1, 3, width)
    return fused if _same(lambda: cls.forward(sample, x), lambda: forward(sample, x)) else None


def _gated(module: Any) -> type | None:
    """The fused class of a gated feed-forward layer: `down(act(gate(x)) · up(x))`, or with gate and up in one layer."""
    cls: Any = type(module)
    act = getattr(module, "act_fn", None) or getattr(module, "activation_fn", None)
    joined, apart = hasattr(module, "gate_up_proj"), hasattr(module, "gate_proj") and hasattr(module, "up_proj")
    if act is None or not hasattr(module, "down_proj") or joined == apart:
        return None

    def middle(self: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if joined:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
            return gate, up
        return self.gate_proj(x), self.up_proj(x)

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states: (..., width)."""
        if library.usable(hidden_states):
            gate, up = middle(self, hidden_states)
            result: torch.Tensor = self.down_proj(swiglu(gate, up) if library.usable(gate, up) else act(gate) * up)
        else:
            result = cls.forward(self, hidden_states)
        return result

    fused: type = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    with torch.device("cpu"):
        sample = cls.__new__(cls)
        nn.Module.__init__(sample)
        sample.__dict__.update({k: v for k, v in module.__dict__.items() if not k.startswith("_")})
        for name, child in module.named_children():
            setattr(sample, name, child)
        weights = torch.sin(torch.arange(6 * 16, dtype=torch.float32)).view(6, 16)
        for name, sizes in (("gate_up_proj", (6, 16)), ("gate_proj", (6, 8)), ("up_proj", (6, 8)), ("down_proj", (8, 6))):
            if hasattr(module, name):
                layer = nn.Linear(*sizes, bias=False)
                with torch.no_grad():
                    layer.weight.copy_(weights.flatten()[: layer.weight.numel()].view_as(layer.weight))
                setattr(sample, name, layer)
        x = torch.cos(torch.arange(18, dtype=torch.float32)).view(1, 3, 6)
    return fused if _same(lambda: cls.forward(sample, x), lambda: forward(sample, x)) else None


def _same(own: Any, fused: Any) -> bool:
    """Whether both give the same; a layer that cannot be run like that is not changed."""
    with torch.no_grad(), torch.device("cpu"):
        try:
            return torch.allclose(own(), fused(), atol=1e-5, rtol=1e-5)
        except (RuntimeError, TypeError, AttributeError, ValueError):
            return False


def _rotary(place: Any) -> None:
    """The architecture's module function that turns queries and keys, for calls that the kernel takes."""
    own = getattr(place, "apply_rotary_pos_emb", None)
    if own is None or getattr(own, "fused", False):
        return

    def turned(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not (args or kwargs) and library.usable(q, k, cos, sin) and possible(q, cos) and possible(k, cos):
            return rotate(q, cos, sin), rotate(k, cos, sin)
        return own(q, k, cos, sin, *args, **kwargs)

    with torch.device("cpu"):
        q, k = (torch.sin(torch.arange(n * 3 * 4.0)).view(1, 3, n, 4).transpose(1, 2) for n in (2, 1))
        cos, sin = torch.rand(1, 3, 4), torch.rand(1, 3, 4)
    if all(_same(lambda n=n: own(q, k, cos, sin)[n], lambda n=n: turned(q, k, cos, sin)[n]) for n in (0, 1)):  # type: ignore[misc]
        turned.fused = True  # type: ignore[attr-defined]
        place.apply_rotary_pos_emb = turned
