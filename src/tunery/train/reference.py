"""The reference model of preference learning: the frozen base's own log-probabilities of every answer, computed once and kept.

They lie in the run directory (`reference.safetensors`), so a resumed run, and every process of a sharded one, reads them. No step pays
for a second model, and it does not matter what the method then does to the base.

    train.matched      (N, 2) float32   summed log-probabilities of both sides of each pair, the preferred one's first
    train.mismatched   (N, 2) float32   KTO only: of another pair's sides after this pair's prompt
    valid.…            the same for the validation pairs

The file's metadata holds, for `train` and `valid`, the SHA-256 of the sequences that the rows stand for.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from tunery.progress import Progress
from tunery.run import Run
from tunery.train.forward import log_probs, packs_for
from tunery.train.packs import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "reference.safetensors"
CHUNK = 64
"""Sides handed to packing at a time: enough for shared prompts, few enough to show progress."""


class PairRow(TokenRow, Protocol):
    """A sequence that holds both sides of a pair, told apart by their marks."""

    @property
    def marks(self) -> np.ndarray | None: ...


def side_log_probs(
    model: PreTrainedModel, sides: Sequence[TokenRow], progress: Progress | None = None, what: str = "", share: bool = True
) -> np.ndarray:
    """(N,) float32: the weighted sum of the log-probabilities of what each sequence learns, 0 where it learns nothing. No gradients."""
    found = np.zeros(len(sides), np.float32)
    with torch.no_grad():
        for start in range(0, len(sides), CHUNK):
            part = sides[start : start + CHUNK]
            for packed in packs_for(model, part, share=share):
                sums = log_probs(model, packed).cpu().numpy() * packed.weights
                found[start : start + len(part)] += np.bincount(packed.rows, sums, len(part)).astype(np.float32)
            if progress:
                progress.show(what, min(start + CHUNK, len(sides)), len(sides))
    return found


def identity(rows: Iterable[PairRow], *more: object) -> str:
    """SHA-256 over the sequences and what else decides the log-probabilities."""
    digest = hashlib.sha256(repr(more).encode())
    for row in rows:
        marks = row.marks if row.marks is not None else np.zeros(0, np.int32)
        for array in (row.tokens, row.weights, marks):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def read(run: Run, name: str, known: str) -> dict[str, np.ndarray] | None:
    """`{"matched", "mismatched"}` of the rows called `name` (train, valid), or None where there are none with that identity."""
    from safetensors import safe_open

    file = run.path / FILE
    if not file.is_file():
        return None
    with safe_open(str(file), "np") as opened:
        if (opened.metadata() or {}).get(name) != known:
            return None
        return {key.partition(".")[2]: opened.get_tensor(key) for key in opened.keys() if key.startswith(f"{name}.")}  # noqa: SIM118


def write(run: Run, name: str, known: str, arrays: dict[str, np.ndarray]) -> None:
    """Put the arrays of the rows called `name` into the file, beside those of others; whole or not at all."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    file = run.path / FILE
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    if file.is_file():
        with safe_open(str(file), "np") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{name}.")}
    tensors |= {f"{name}.{key}": value for key, value in arrays.items()}
    handle, temporary = tempfile.mkstemp(dir=run.path, prefix=f".{FILE}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, {**metadata, name: known})
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
