"""What this machine reaches, measured once: matrix products thick and thin, attention forward and backward, plain moving of values.

The figures are kept in the cache and measured again when the processor, the cores, the threads, torch or the code that is measured change.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tunery import machine
from tunery.models.cache import cache_folder
from tunery.plan.rates import Rates
from tunery.plan.time import OPTIMISER_BYTES
from tunery.run import write_text

MEASURED = (
    "plan/calibration.py",
    "plan/_counting.py",
    "plan/_reference.py",
    "kernels/cpu.c",
    "kernels/fused.py",
    "kernels/library.py",
    "kernels/nf4.py",
    "kernels/tile_attention.c",
    "kernels/tile_head.c",
    "kernels/tile_low_rank.c",
    "kernels/tile_linear.py",
    "kernels/tiles.h",
    "train/_block_attention.py",
    "train/_head_loss.py",
    "train/_tile_attention.py",
    "train/_tile_head.py",
    "train/attention.py",
    "train/forward.py",
    "train/next_token.py",
    "train/packs.py",
    "methods/_frozen.py",
    "methods/_lora_linear.py",
    "methods/_low_rank.py",
    "methods/_tile_low_rank.py",
)
"""The code whose speed and memory the figures hold: what measures, and what a step of the reference training runs through."""
KINDS = ("matrix", "tiles", "thin", "attention", "attention_backward", "moved", "streamed", "dequantised")
BUDGET = 0.25
"""Seconds for each figure: the median of what fits in."""
TOKENS, SHORT = 512, 128
"""The length at which rates are measured, that of a full pack; and a second one, at which what an operation costs beside its work weighs more."""
WHOLE_SECONDS = 1.5
"""For the three reference batches in turn, in each type: on a shared machine a shorter look may meet a moment that is not like the rest."""


def rates(again: bool = False) -> Rates:
    """Of this machine's CPU; from the cache, or measured now in under 20 seconds."""
    threads = _threads()
    file = _file()
    if file.is_file() and not again:
        try:
            return Rates(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            pass  # damaged: the cache may always be made again
    found = _measure(f"{machine.cpu_name()}, {threads} thread{'s' * (threads > 1)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(asdict(found), indent=2) + "\n")
    return found


def described() -> str:
    """The rates of this machine in words."""
    found, parts = rates(), []
    for of in found.rate["matrix"]:
        matrix, moved = found.rate["matrix"][of] / 1e9, found.rate["moved"][of] / 1e9
        whole = f"a batch {found.whole[of]:.2f} of its parts and {found.operation_seconds[of] * 1e6:.0f} us an operation"
        parts.append(f"{of}: {matrix:.0f} Gflop/s of matrix products, {moved:.1f} GB/s moved, {whole}")
    libraries = f"libraries {found.library_bytes / 1e6:.0f} MB, allocator {found.allocator:.0%}"
    return f"{found.name} ({_file().stem}): {'; '.join(parts)}; {libraries}"


def _file() -> Path:
    """Where the figures are kept, by everything that they depend on."""
    import torch

    known = [machine.cpu_name(), machine.cores(), _threads(), torch.__version__, _code()]
    return cache_folder() / "calibration" / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]}.json"


def _code() -> str:
    """SHA-256 of the files that are measured."""
    room = Path(__file__).parents[1]
    return hashlib.sha256(b"\0".join((room / name).read_bytes() for name in MEASURED)).hexdigest()


def _measure(name: str) -> Rates:
    import torch

    rate: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    for dtype in (torch.bfloat16, torch.float32):
        of = str(dtype).removeprefix("torch.")
        # The shapes of small models, for which this is: one figure over all weighs each as training does.
        rate["matrix"][of] = _products(dtype, [(TOKENS, 576, 1536), (TOKENS, 1536, 576), (TOKENS, 576, 576), (TOKENS, 2048, 2048)])
        rate["tiles"][of] = _tiles(dtype) or rate["matrix"][of]
        rate["thin"][of] = _products(dtype, [(TOKENS, 576, 16), (TOKENS, 16, 576), (TOKENS, 16, 1536), (576, TOKENS, 16)])
        rate["attention"][of], rate["attention_backward"][of] = _attention(dtype)
        # New outputs, as training has them: memory handed out anew costs more than the values written to it.
        x, y = torch.randn(TOKENS, 1536).to(dtype), torch.randn(TOKENS, 1536).to(dtype)
        rate["moved"][of] = 3 * x.numel() * x.element_size() / _median(partial(torch.mul, x, y))
        rate["dequantised"][of] = _dequantised(dtype) or rate["moved"][of]
    rate["streamed"] = dict.fromkeys(rate["moved"], _streamed())
    faster = max(rate["matrix"], key=lambda of: rate["matrix"][of])
    libraries, allocator = _fresh_process(faster)
    nothing, one = dict.fromkeys(rate["matrix"], 0.0), dict.fromkeys(rate["matrix"], 1.0)
    parts = Rates(name, rate, nothing, libraries, one, measured=True, allocator=allocator)
    found = {of: _whole(of, parts) for of in (*parts.whole, "autocast")}
    whole, elementwise, operation = ({of: figures[n] for of, figures in found.items()} for n in range(3))
    return replace(parts, whole=whole, elementwise=elementwise, operation_seconds=operation)


def _products(dtype: Any, shapes: list[tuple[int, int, int]]) -> float:
    import torch
    from torch.nn import functional as F

    pairs = [(torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)) for m, k, n in shapes]
    with torch.no_grad():
        return sum(2 * m * k * n for m, k, n in shapes) / _median(lambda: [F.linear(x, w) for x, w in pairs])


def _tiles(dtype: Any) -> float | None:
    """Of adapted layers there and back; None where there are no kernels in tiles."""
    import torch

    from tunery.methods import _tile_low_rank

    rank, flops, layers = 16, 0, []
    for width, out in ((576, 1536), (1536, 576), (576, 576)):
        x, layer = torch.randn(TOKENS, width).to(dtype).requires_grad_(), torch.nn.Linear(width, out, bias=False, dtype=dtype)
        layer.requires_grad_(False)
        if not _tile_low_rank.able(x, layer):
            return None
        layers.append((x, layer, torch.randn(rank, width), torch.zeros(out, rank)))
        flops += 2 * TOKENS * (2 * width * out + 3 * rank * (width + out))

    def both() -> None:
        for x, layer, a, b in layers:
            y = _tile_low_rank.product(x, layer, a, b, 1.0)
            torch.autograd.grad(y, x, y.detach())

    return flops / _median(both)


def _streamed() -> float:
    """Of AdamW over more numbers than caches hold, as in full tuning."""
    import torch

    weight = torch.nn.Parameter(torch.zeros(1 << 24))
    weight.grad = torch.ones_like(weight)
    return OPTIMISER_BYTES * weight.numel() / _median(torch.optim.AdamW([weight], fused=True).step)


def _dequantised(dtype: Any) -> float | None:
    """None where bitsandbytes is not installed."""
    import torch

    try:
        from tunery.methods import _nf4
    except ImportError:
        return None
    layer = _nf4.quantise(torch.nn.Linear(576, 1536, bias=False), double=True)
    return (0.5 + dtype.itemsize) * 576 * 1536 / _median(partial(layer.dense, dtype))


def _attention(dtype: Any) -> tuple[float, float]:
    """Of one row, causal, with as many key heads as query heads."""
    import torch
    from torch.nn import functional as F

    from tunery.train import _tile_attention

    q = torch.randn(1, 9, TOKENS, 64).to(dtype)
    learned = key, value, query = tuple(q.clone().requires_grad_() for _ in range(3))
    if _tile_attention.possible(q):
        among = _tile_attention.pairs(np.tri(TOKENS, dtype=bool))
        work = 2 * q.shape[1] * q.shape[3] * among.bits.numel() * _tile_attention.SIDE
        forward = partial(_tile_attention.attend, query, key, value, among, None)
    else:
        mask = torch.zeros(1, 1, TOKENS, TOKENS, dtype=dtype).masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), float("-inf"))
        work = 2 * q.numel() * TOKENS
        forward = partial(F.scaled_dot_product_attention, query, key, value, attn_mask=mask)
    out = forward()
    backward = _median(lambda: torch.autograd.grad(out, learned, torch.ones_like(out), retain_graph=True))
    return 2 * work / _median(forward), 5 * work / backward


def _whole(of: str, parts: Rates) -> tuple[float, float, float]:
    """(whole, elementwise, operation_seconds) of `Rates`, with which three real batches of a small training take what they do.

    LoRA, or in autocast full tuning. Length and width tell the three apart: products grow with the width's square, operations with neither.
    """
    import torch
    from scipy.optimize import nnls

    from tunery.plan._reference import batch

    full = of == "autocast"
    dtype = torch.bfloat16 if full else getattr(torch, of)
    wide = SHORT if of == "float32" else TOKENS  # it is to take 20 seconds in all, and float32 is slow
    batches = [batch(dtype, tokens, full, wider) for tokens, wider in ((TOKENS, 1), (SHORT, 1), (wide, 2))]
    seconds = np.array(medians([work for work, _ in batches], WHOLE_SECONDS))
    work = np.array([[*parts.parts(counted.operations), sum(counted.operations.values())] for _, counted in batches])
    found, _ = nnls(work / seconds[:, None], np.ones(len(seconds)))  # none can be negative; each batch counts as much as the others
    return float(found[0]), float(found[1]), float(found[2])


def medians(works: list[Callable[[], Any]], seconds: float) -> list[float]:
    """The median time of each, in turn for so many seconds in all."""
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times[0]) < 3:
        for work, own in zip(works, times, strict=True):
            started = time.perf_counter()
            work()
            own.append(time.perf_counter() - started)
    return [statistics.median(own) for own in times]


def _median(work: Callable[[], Any]) -> float:
    return medians([work], BUDGET)[0]


def _fresh_process(dtype: str) -> tuple[int, float]:
    """Of a process of its own: its size when it has imported what a training run imports, and what its allocator adds to a batch."""
    code = (
        "import json, torch, transformers, peft, safetensors, sklearn.metrics\n"
        "from transformers import AutoModelForCausalLM\n"
        "from transformers.models.llama import modeling_llama\n"
        "import tunery.pipeline, tunery.train.loop\n"
        f"torch.set_num_threads({_threads()})\n"
        "x = torch.randn(256, 256, requires_grad=True); (x @ x).sum().backward()\n"
        "from tunery.machine import peak_memory\n"
        "size = peak_memory()\n"
        "from tunery.plan._reference import growth\n"
        f"print(json.dumps([size, *growth(torch.{dtype}, {TOKENS})]))\n"
    )
    source = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    size, grown, counted = json.loads(result.stdout.splitlines()[-1])
    return int(size), max(0.0, grown / counted - 1)


def _threads() -> int:
    import torch

    return torch.get_num_threads()
