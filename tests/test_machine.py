from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tunery import machine

GB = 1 << 30


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def _group(tmp_path: Path, text: str) -> Path:
    (tmp_path / "group").write_text(text)
    return tmp_path / "group"


def test_without_control_groups_it_is_the_system(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert machine.cores(absent, absent) == len(os.sched_getaffinity(0))
    total, available = machine.memory(absent, absent)
    assert total == psutil.virtual_memory().total
    assert 0 < available <= total


def test_version_2_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    cgroups, group = tmp_path / "cgroup", _group(tmp_path, "0::/pod/job\n")
    _write(cgroups / "pod" / "job", cpu__max="350000 100000", memory__max="max", memory__current="5", memory__stat="inactive_file 0")
    _write(
        cgroups / "pod",
        cpu__max="max 100000",
        memory__max=str(GB),
        memory__current=str(GB // 2),
        memory__stat=f"anon 1\ninactive_file {GB // 8}",
    )
    assert machine.cores(cgroups, group) == 4, "3.5 cores are four, of the parent's none"
    total, available = machine.memory(cgroups, group)
    assert total == GB, "the parent's limit binds the child"
    assert available == GB // 2 + GB // 8, "what can be dropped is available"


def test_version_1_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    cgroups, group = tmp_path / "cgroup", _group(tmp_path, "4:memory:/box\n2:cpu,cpuacct:/box\n")
    _write(cgroups / "cpu,cpuacct" / "box", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    files = {"memory__limit_in_bytes": str(GB), "memory__usage_in_bytes": str(GB // 4), "memory__stat": "total_inactive_file 0"}
    _write(cgroups / "memory" / "box", **files)
    assert machine.cores(cgroups, group) == 2
    assert machine.memory(cgroups, group) == (GB, GB - GB // 4)
    _write(cgroups / "cpu,cpuacct" / "box", cpu__cfs_quota_us="-1")
    _write(cgroups / "memory" / "box", memory__limit_in_bytes="9223372036854771712")
    assert machine.cores(cgroups, group) == 64
    assert machine.memory(cgroups, group)[0] == psutil.virtual_memory().total


def test_the_processor() -> None:
    assert machine.cpu_name()
    assert machine.cpu_flags() == machine.cpu_flags()
    if Path("/proc/cpuinfo").exists():
        assert machine.cpu_flags() & {"sse2", "fp", "asimd"}


def test_the_peak_is_this_processs_own() -> None:
    """A process that a large one starts is not as large: by getrusage it would be."""
    held = bytearray(200 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    code = "from tunery.machine import peak_memory; print(peak_memory())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert machine.peak_memory() > len(held)
    assert child < 100 << 20


def test_the_peak_where_the_kernel_does_not_say_it(tmp_path: Path) -> None:
    assert machine.peak_memory(tmp_path / "none") > 1 << 20
