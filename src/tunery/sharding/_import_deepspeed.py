"""Importing DeepSpeed so that it is quiet and compiles nothing."""

from __future__ import annotations

import logging
import os
from typing import Any


def import_deepspeed() -> Any:
    """The package. Takes some seconds the first time."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it looks for every accelerator there is
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # An exchange through shared memory, only for generating text, that would be compiled now where there is a compiler.
    deepspeed.ops.__compatible_ops__ = {**deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm": False}
    return deepspeed
