"""The compiled kernels, made by the machine's own C compiler at first use and kept in the cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tunery.machine import cpu_name
from tunery.models.cache import cache_folder

SOURCES = ("cpu.c", "tile_attention.c", "tile_head.c", "tile_low_rank.c")
INCLUDED = ("tiles.h",)
FLAGS: tuple[str, ...] = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS += ("-mprefer-vector-width=512",)  # without it gcc halves the vectors of processors that have AVX-512
SIDE = 32
"""Rows and columns of what the kernels in tiles compute at a time."""
_FOLDER = Path(__file__).parent
_SUFFIX = {torch.bfloat16: "bf16", torch.float32: "f32"}
_off: ContextVar[bool] = ContextVar("off", default=False)


def compiler() -> str | None:
    """The C compiler: $CC, or cc, gcc or clang."""
    candidates = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


@cache
def library() -> Any:
    """The loaded library, or None where it cannot be made."""
    cc = compiler()
    if cc is None or platform.system() == "Windows":
        return None
    version = subprocess.run([cc, "--version"], capture_output=True, text=True, check=False).stdout
    texts = [_FOLDER.joinpath(name).read_text(encoding="utf-8") for name in (*SOURCES, *INCLUDED)]
    known = "\n".join([version, cpu_name(), platform.machine(), *FLAGS, *texts])
    file = cache_folder() / "kernels" / f"{hashlib.sha256(known.encode()).hexdigest()[:16]}.so"
    try:
        return ctypes.CDLL(str(file)) if file.is_file() or _compile(cc, file) else None
    except OSError:  # the cache cannot be written, or the library not be loaded
        return None


def _compile(cc: str, file: Path) -> bool:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        sources = [str(_FOLDER / name) for name in SOURCES]
        done = subprocess.run([cc, *FLAGS, "-o", str(made), *sources, "-lm"], capture_output=True, check=False)
        if done.returncode:
            return False
        made.replace(file)
    return True


@contextmanager
def without() -> Iterator[None]:
    """In this block torch's own operations are used, to compare with."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def enabled() -> bool:
    """False inside `without`."""
    return not _off.get()


def usable(*tensors: torch.Tensor) -> bool:
    """Whether the kernels take these: all on the CPU, all bfloat16 or all float32; shapes alone count as what they stand for."""
    first = tensors[0]
    alike = all(t.device == first.device and t.dtype == first.dtype for t in tensors)
    if _off.get() or not alike or first.dtype not in _SUFFIX or torch.is_autocast_enabled("cpu"):
        return False
    if first.device.type == "meta":
        return library() is not None
    return first.device.type == "cpu" and all(type(t.data) is torch.Tensor for t in tensors) and library() is not None


@cache
def tiles() -> bool:
    """Whether this processor multiplies bfloat16, so that there are kernels in tiles: AMX, or AVX-512 with bf16."""
    return library() is not None and bool(library().tiles_usable())


def call(name: str, dtype: torch.dtype, *arguments: Any) -> int:
    """Call a kernel: tensors as their addresses, None as null, ints as int64, floats as float; the threads go last. What it returns, if it does."""
    function = getattr(library(), f"{name}_{_SUFFIX[dtype]}")
    if function.argtypes is None:
        function.argtypes = [*map(_type, arguments), ctypes.c_int]
    code: int = function(*[a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments], torch.get_num_threads())
    return code


def _type(argument: Any) -> Any:
    return ctypes.c_float if isinstance(argument, float) else ctypes.c_int64 if isinstance(argument, int) else ctypes.c_void_p


def done(code: int) -> None:
    """Raises MemoryError where a kernel says that it found none."""
    if code:
        raise MemoryError("a kernel found no memory to work in")


def define(schema: str, function: Callable[..., Any]) -> None:
    """Make a kernel an operation of torch's, `torch.ops.tunery.NAME`: the plan, on shapes alone, and the profiler then see it by name."""
    name = schema.partition("(")[0]
    _operations.define(schema)
    for device in ("CPU", "Meta"):
        _operations.impl(name, function, device)


_operations = torch.library.Library("tunery", "FRAGMENT")
