"""What this machine can do: cores, memory, instructions, GPUs. Every figure is what this process may use, so the limits
of a container (control groups, CPU affinity) count, not the host's size.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # cgroup v1 writes a huge number where v2 writes "max"


def cores(cgroups: Path = _CGROUPS, group: Path = Path("/proc/self/cgroup")) -> int:
    """How many cores this process may use: its affinity, or a container's CPU quota rounded up when that is less."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = []
    for folder in _folders(cgroups, group, "cpu"):
        try:
            if (folder / "cpu.max").is_file():  # v2: "QUOTA PERIOD" in microseconds, or "max PERIOD"
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
            if quota != "max" and int(quota) > 0:
                quotas.append(math.ceil(int(quota) / int(period)))
        except (OSError, ValueError):
            continue  # this group sets no quota
    return max(1, min([affinity, *quotas]))


def memory(cgroups: Path = _CGROUPS, group: Path = Path("/proc/self/cgroup")) -> tuple[int, int]:
    """Bytes of memory: (in all, available now), within the container's limit. Page cache that can be dropped is available."""
    import psutil

    system = psutil.virtual_memory()
    total, available = int(system.total), int(system.available)
    for folder in _folders(cgroups, group, "memory"):
        v2 = (folder / "memory.max").is_file()
        try:
            limit = (folder / ("memory.max" if v2 else "memory.limit_in_bytes")).read_text().strip()
            used = int((folder / ("memory.current" if v2 else "memory.usage_in_bytes")).read_text())
            if limit == "max" or int(limit) >= _UNLIMITED:
                continue
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            droppable = int(stat.get("inactive_file" if v2 else "total_inactive_file", 0))
        except (OSError, ValueError):
            continue  # this group sets no limit
        total = min(total, int(limit))
        available = min(available, max(0, int(limit) - used + droppable))
    return total, available


def _folders(cgroups: Path, group: Path, controller: str) -> list[Path]:
    """The control groups that bind this process, itself and its parents, for version 1 and 2."""
    try:
        lines = group.read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = cgroups
        elif controller in controllers.split(","):
            root = cgroups / controllers if (cgroups / controllers).is_dir() else cgroups / controller
        else:
            continue
        here = root / path.lstrip("/")
        found += [folder for folder in (here, *here.parents) if folder.is_relative_to(root) and folder.is_dir()]
    return list(dict.fromkeys(found))


@cache
def cpu_name() -> str:
    """The processor's model name, or the architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def cpu_flags() -> frozenset[str]:
    """The instruction set extensions by Linux's names (avx2, avx512f, avx512_bf16, amx_bf16, bf16 …); empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.lower().startswith(("flags", "features"))), []))


def gpus() -> list[dict[str, Any]]:
    """Each GPU that torch can use (CUDA or ROCm): name, memory in bytes, whether bf16 runs in hardware. Imports torch."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        found.append({"name": properties.name, "memory_bytes": properties.total_memory, "bf16": bf16})
    return found


def keep_freed_memory() -> None:
    """Have what is freed stay this process's, where its allocator is glibc's, which hands large blocks back and takes them anew.

    Gradients as large as the model are made anew at every step, and the system clears each page of them first: a sixth of a step (docs/log.md).
    """
    allocator = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if allocator is not None:
        allocator.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        allocator.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD


def peak_memory(status: Path = Path("/proc/self/status")) -> int:
    """The greatest resident size of this process so far, in bytes; children are not counted."""
    # Not getrusage where the kernel says it itself: a process there begins with the peak of the one that started it.
    try:
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
