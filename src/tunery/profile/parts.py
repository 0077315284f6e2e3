"""The parts of a training step, as a person would name them. Every moment of a step belongs to exactly one of them."""

from __future__ import annotations

PARTS: dict[str, tuple[str, str]] = {
    "matrix": ("Products with the model's weights", "what the linear layers multiply with; forward, and for the gradient of their input"),
    "adapter": ("Adapter", "its thin products, and their gradients"),
    "attention": ("Attention", "scores, softmax and weighted sums, with the mask"),
    "elementwise": ("Norms, rotary, activations, sums", "what a layer does beside products and attention; the embedding too"),
    "head": ("Output head and loss", "logits and cross-entropy, or a task's own head and loss"),
    "dequantise": ("Writing out four-bit weights", "before each product"),
    "copies": ("Copies and casts", "tensors laid out anew, or in another type"),
    "optimiser": ("Optimiser", "adding gradients up, clipping, and the step itself"),
    "data": ("Preparing batches", "rows laid into packs, or padded"),
    "exchange": ("Exchange between processes", "gathering weights, summing gradients, and waiting for the others"),
    "python": ("Python between operations", "the code of the layers, of autograd and of the loop, while nothing is computed"),
    "idle": ("Device without work", "while it waits for Python and for operations to be launched"),
    "other": ("Other", "operations that belong to none of the above"),
}
"""Name → (title, what is in it). A part that took no time is not shown."""

HELD: dict[str, str] = {
    "weights": "Weights of the model",
    "adapter": "Adapter",
    "optimiser": "Optimiser state",
    "gradients": "Gradients",
}
"""What lies in memory through a whole step, or from the backward pass to the optimiser's."""

PASSING: dict[str, str] = {
    "kept": "Activations kept for the backward pass",
    "logits": "Output head and loss",
    "backward": "Of the backward pass itself",
    "data": "Batches",
    "other": "Other tensors",
}
"""What comes and goes within a step."""

AROUND: dict[str, str] = {
    "libraries": "Python and libraries",
    "rest": "Allocator, profiler, the rest",
}
"""What the process holds beside its tensors: their sum is what is resident beyond what torch knows of."""
