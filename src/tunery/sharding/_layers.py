"""Which parts of a model are gathered together: its layers, the large modules that stand one after another."""

from __future__ import annotations

from torch import nn


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model, outermost ones only.

    transformers marks what can be computed a second time for the gradient, and that is a layer; a model without the mark is divided at its
    lists of modules. What an adapter adds inside a layer is gathered with it, so code inside may read any weight of the layer.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    marked = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    found = marked or [layer for m in model.modules() if isinstance(m, nn.ModuleList) for layer in m]
    inside = {id(inner) for layer in found for inner in layer.modules() if inner is not layer}
    return [layer for layer in found if id(layer) not in inside]
