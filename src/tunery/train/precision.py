"""Which number format the frozen weights and activations have, and why."""

from __future__ import annotations


def choose(wanted: str, device: str) -> tuple[str, str]:
    """`("bfloat16" | "float32", the reason)`. `wanted` is the recipe's `auto`, `bf16` or `fp32`."""
    if wanted != "auto":
        return {"bf16": "bfloat16", "fp32": "float32"}[wanted], "as the recipe says"
    import torch

    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", f"auto: bf16, {torch.cuda.get_device_name()} computes it in hardware"
        return "float32", f"auto: fp32, {torch.cuda.get_device_name()} has no bf16 in hardware"
    capabilities = torch.backends.cpu.get_cpu_capability(), torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    if capabilities[1]:
        return "bfloat16", "auto: bf16, this CPU has amx_bf16"
    if capabilities[2]:
        return "bfloat16", "auto: bf16, this CPU has avx512_bf16"
    return "float32", f"auto: fp32, this CPU has no bf16 instructions ({capabilities[0]})"


def peaks(device: str) -> dict[str, int]:
    """`peak_memory_bytes` of this process so far, and on a GPU `peak_device_bytes`."""
    import torch

    from tunery.machine import peak_memory

    found = {"peak_memory_bytes": peak_memory()}
    return {**found, "peak_device_bytes": torch.cuda.max_memory_allocated()} if device.startswith("cuda") else found
