"""Named hardware: what its makers say that it reaches, and which share of it training is taken to reach.

Peak rates are dense (without sparsity), of bf16 where the device has it; memory bandwidth in bytes a second. `float32` is the rate
outside tensor cores, as torch computes it unless told otherwise.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from tunery.errors import InputError
from tunery.plan.rates import Rates

UTILISATION = 0.4
"""Share of the peak that matrix products of a training reach: 38 to 43 % in the Llama 3 report's table 4 (arXiv:2407.21783)."""
ATTENTION, ATTENTION_BACKWARD, THIN = 0.3, 0.2, 0.1
"""Shares of the same peak: torch's fused attention forward and backward, and products with a thin side, which memory holds up."""
MOVING = 0.8
"""Share of the memory's bandwidth that elementwise operations reach."""
LAUNCH = 5e-6
"""Seconds to launch an operation from Python."""
CONTEXT_BYTES = 600 << 20
"""What a CUDA context with torch's kernels and its libraries' workspaces takes of a device."""


@dataclass(frozen=True)
class Hardware:
    """One device. Rates a second; `link`: bytes a second to another such device in the same machine."""

    name: str
    memory_bytes: int
    bfloat16: float | None
    float32: float
    bandwidth: float
    link: float
    source: str

    def dtype(self) -> str:
        """The type that `train.precision: auto` takes there."""
        return "bfloat16" if self.bfloat16 else "float32"

    def rates(self) -> Rates:
        """By the shares above."""
        peak = {"bfloat16": self.bfloat16 or self.float32, "float32": self.float32}
        shares = {
            "matrix": UTILISATION,
            "tiles": UTILISATION,
            "thin": THIN,
            "attention": ATTENTION,
            "attention_backward": ATTENTION_BACKWARD,
        }
        rate = {kind: {of: p * share for of, p in peak.items()} for kind, share in shares.items()}
        rate |= {how: dict.fromkeys(peak, self.bandwidth * MOVING) for how in ("moved", "streamed", "dequantised")}
        return Rates(self.name, rate, dict.fromkeys(peak, LAUNCH), CONTEXT_BYTES, dict.fromkeys(peak, 1.0), measured=False)


_GB, _T, _G = 10**9, 1e12, 1e9
HARDWARE: dict[str, Hardware] = {
    h.name: h
    for h in (
        Hardware("a100-40gb", 40 * _GB, 312 * _T, 19.5 * _T, 1555 * _G, 300 * _G, "NVIDIA A100 data sheet, 40 GB SXM"),
        Hardware("a100-80gb", 80 * _GB, 312 * _T, 19.5 * _T, 2039 * _G, 300 * _G, "NVIDIA A100 data sheet, 80 GB SXM"),
        Hardware("h100", 80 * _GB, 989 * _T, 67 * _T, 3350 * _G, 450 * _G, "NVIDIA H100 data sheet, SXM"),
        Hardware("h200", 141 * _GB, 989 * _T, 67 * _T, 4800 * _G, 450 * _G, "NVIDIA H200 data sheet, SXM"),
        Hardware("l4", 24 * _GB, 121 * _T, 30.3 * _T, 300 * _G, 32 * _G, "NVIDIA L4 data sheet"),
        Hardware("t4", 16 * _GB, None, 8.1 * _T, 320 * _G, 16 * _G, "NVIDIA T4 data sheet"),
        Hardware("a10g", 24 * _GB, 70 * _T, 35 * _T, 600 * _G, 32 * _G, "AWS EC2 G5 page; NVIDIA A10G product brief"),
        Hardware("v100", 16 * _GB, None, 15.7 * _T, 900 * _G, 150 * _G, "NVIDIA V100 data sheet, SXM2 16 GB"),
        Hardware("rtx-3090", 24 * _GB, 71 * _T, 35.6 * _T, 936 * _G, 32 * _G, "NVIDIA GA102 whitepaper, FP32 accumulation"),
        Hardware("rtx-4090", 24 * _GB, 165.2 * _T, 82.6 * _T, 1008 * _G, 32 * _G, "NVIDIA Ada whitepaper, FP32 accumulation"),
    )
}


def hardware(name: str) -> Hardware:
    """The device of that name. Raises InputError naming the nearest."""
    found = HARDWARE.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), HARDWARE, n=1, cutoff=0.4)
        raise InputError(
            f"--on {name}: this hardware is not known; " + (f"did you mean `{near[0]}`?" if near else f"known: {', '.join(HARDWARE)}")
        )
    return found
