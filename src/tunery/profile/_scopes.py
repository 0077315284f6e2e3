"""Names on the parts of a training step, as ranges that the profiler records. They are put on from outside and taken off again.

step ─ data            the learner makes a batch
     ─ loss            the objective; what is not in the model's own forward is the output head and the loss
         ─ layers      the model's forward; what is in none of the following is elementwise
             ─ linear, adapter, attention, rotary, head
     ─ backward        what autograd calls is tied to its forward operation by autograd's sequence numbers
     ─ optimiser
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function

from tunery.models.heads import head_modules
from tunery.profile.scope import Scope


@contextmanager
def scopes(model: Any, engine: Any, learner: Any) -> Iterator[None]:
    """Within, every part of a step of this model has its range."""
    with ExitStack() as undo:
        for owner, method, name in (
            (engine, "loss", "loss"),
            (engine, "backward", "backward"),
            (engine, "step", "optimiser"),
            (engine, "clear", "optimiser"),
            (model, "forward", "layers"),
        ):
            _wrap(undo, owner, method, Scope(name))
        _batches(undo, learner)
        for module, scope in _modules(model):
            _wrap(undo, module, "forward", scope)
        _attention(undo, getattr(model.config.get_text_config(), "_attn_implementation", None))
        yield


def _modules(model: Any) -> Iterator[tuple[nn.Module, Scope]]:
    heads = [model.get_submodule(name) for name in head_modules(model)] or [model.get_output_embeddings()]
    taken = {id(inner) for head in heads if head is not None for inner in head.modules()}
    yield from ((head, Scope("head")) for head in heads if head is not None)
    for module in model.modules():
        if id(module) in taken:
            continue
        base = _base(module)
        if base is not None:
            taken |= {id(inner) for inner in module.modules() if inner is not base}
            rank = len(module.lora_A) if isinstance(getattr(module, "lora_A", None), torch.Tensor) else 0
            yield module, Scope("adapter", base.in_features, base.out_features, rank)
        elif isinstance(module, nn.Linear):
            yield module, Scope("linear", module.in_features, module.out_features)
        elif type(module).__name__.endswith("RotaryEmbedding"):
            yield module, Scope("rotary")


def _base(module: nn.Module) -> nn.Linear | None:
    """The frozen layer inside an adapter's: ours call it `base`, PEFT's `base_layer`."""
    children = dict(module.named_children())
    base = children.get("base_layer", children.get("base"))
    return base if isinstance(base, nn.Linear) else None


def _wrap(undo: ExitStack, owner: Any, name: str, scope: Scope) -> None:
    """Put a range around a method of this one object."""
    own, was = getattr(owner, name), vars(owner).get(name)

    @functools.wraps(own)
    def ranged(*args: Any, **kwargs: Any) -> Any:
        with record_function(scope.label):
            return own(*args, **kwargs)

    setattr(owner, name, ranged)
    undo.callback(delattr, owner, name) if was is None else undo.callback(setattr, owner, name, was)


def _batches(undo: ExitStack, learner: Any) -> None:
    own = learner.batches

    def ranged(*args: Any, **kwargs: Any) -> Iterator[Any]:
        made = iter(own(*args, **kwargs))
        while True:
            with record_function(Scope("data").label):
                batch = next(made, None)
            if batch is None:
                return
            yield batch

    learner.batches = ranged
    undo.callback(delattr, learner, "batches")


def _attention(undo: ExitStack, implementation: str | None) -> None:
    """Ranges around the functions that transformers' layers look up by the model's attention implementation, where it is a function."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for interface, known in ((AttentionInterface, ALL_ATTENTION_FUNCTIONS), (AttentionMaskInterface, ALL_MASK_ATTENTION_FUNCTIONS)):
        own = known.get(implementation)
        if own is None:  # written out in the layer itself
            continue

        def ranged(*args: Any, _own: Any = own, **kwargs: Any) -> Any:
            with record_function(Scope("attention").label):
                return _own(*args, **kwargs)

        interface.register(implementation, functools.wraps(own)(ranged))
        undo.callback(interface.register, implementation, own)
