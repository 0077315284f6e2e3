"""Where LoRA's matrices begin, beside random A and zero B: at the weight's own main directions, or at what quantising lost.

All in float32 by a full singular value decomposition, on the device of the weight; nothing here needs a GPU.
"""

from __future__ import annotations

import math

import torch

from tunery.errors import InputError


def pissa(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in), B (out, rank) with s·BA the best approximation of the weight (out, in) at this rank.

    Meng et al. 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation": these are then trained, and what is left of the
    weight is frozen. Raises InputError for a rank that the weight does not have.
    """
    return _principal(weight.detach().float(), rank, scale, "pissa")


def loftq(weight: torch.Tensor, stored: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in), B (out, rank) with s·BA the best approximation of weight − stored, what the quantised form `stored` (out, in) lost.

    Li et al. 2023, "LoftQ: LoRA-Fine-Tuning-Aware Quantization", with one round of quantising and decomposing. More rounds would
    quantise another weight than the base's own, and the adapter would fit no base that others can make.
    """
    return _principal(weight.detach().float() - stored.float(), rank, scale, "loftq")


def _principal(matrix: torch.Tensor, rank: int, scale: float, start: str) -> tuple[torch.Tensor, torch.Tensor]:
    if rank > min(matrix.shape):
        raise InputError(f"method.rank: `start: {start}` needs a rank of at most {min(matrix.shape)} in this model, not {rank}; lower it")
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    assert math.isfinite(float(root.sum()))
    return root[:, None] * vh[:rank], u[:, :rank] * root
