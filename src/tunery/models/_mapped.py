"""While a model is made of weights files in another number format, the files' pages that were read are given back.

The files are mapped into memory, and every tensor is made anew in the asked-for type. Without this their pages stay resident until the last
tensor is made: a model of 135 M parameters in bfloat16 from a file in float32 then takes 0.54 GB more while it is loaded than afterwards,
which is more than a training step does. Where both types are the same the model's weights are those pages, and nothing is done.

Giving a private page back forgets what was written to it, so only what this load mapped is touched: a model of the file's own type that is
in memory already, and was perhaps trained, lies in such pages. One load at a time, since none could tell another's mapping from its own.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAUSE = 0.02
"""Seconds between two times: a file is read at some GB a second, so tens of MB are resident at a time."""
_NAMES = {"float32": "F32", "bfloat16": "BF16"}
_loading = threading.RLock()


@contextmanager
def given_back(folder: Path, dtype: str) -> Iterator[None]:
    """Within this block a model of this type is loaded from the folder. Only Linux says which pages are whose; elsewhere nothing is done."""
    with _loading:
        files = {str(file.resolve()) for file in folder.glob("*.safetensors") if _made_anew(file, dtype)}
        if not files or platform.system() != "Linux" or not hasattr(mmap, "MADV_DONTNEED"):
            yield
            return
        others, over = list(_mapped(files)), threading.Event()

        def give_back() -> None:
            advise = ctypes.CDLL(None).madvise
            while not over.wait(PAUSE):
                for start, end in _mapped(files):
                    if not any(start < to and since < end for since, to in others):
                        advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)  # read again if need be

        thread = threading.Thread(target=give_back, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _made_anew(file: Path, dtype: str) -> bool:
    """Whether no tensor in the file has this type. Of a damaged file it is not said: the loader says what is wrong."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as tensors:
            return all(tensors.get_slice(name).get_dtype() != _NAMES[dtype] for name in tensors.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


def _mapped(files: set[str]) -> Iterator[tuple[int, int]]:
    """Where they lie in this process's memory: (from, to) of each mapping (proc_pid_maps(5))."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, name = line.split(maxsplit=5)
        if name in files:
            start, end = place.split("-")
            yield int(start, 16), int(end, 16)
