"""llama.cpp's own programs: where they are on this machine, and how its converter gets here.

The converter (convert_hf_to_gguf.py) is in no package of its own. It comes with the source package of llama-cpp-python, which holds
llama.cpp whole and unchanged; `python -m tunery.export.llama_cpp` fetches that package by pip, at a fixed version with its SHA-256
checked, and keeps the converter's files alone (2 MB of 77). Nothing is compiled. A folder of one's own goes before it: TUNERY_LLAMA_CPP.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tunery.errors import InputError, MissingExtraError, RunError, TuneryError
from tunery.models.cache import Progress, build_once, cache_folder
from tunery.run import sha256_of

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SCRIPT = "convert_hf_to_gguf.py"
WANTED = (SCRIPT, "LICENSE", "conversion/", "gguf-py/gguf/", "gguf-py/LICENSE")
FOLDER = "TUNERY_LLAMA_CPP"
FETCH = "python -m tunery.export.llama_cpp"


def converter() -> Path | None:
    """llama.cpp's converter: in the folder that TUNERY_LLAMA_CPP names, as it was fetched, or on PATH; None when there is none.

    Raises InputError when TUNERY_LLAMA_CPP names a folder without it.
    """
    named = os.environ.get(FOLDER)
    if named:
        script = Path(named).expanduser() / SCRIPT
        if not script.is_file():
            raise InputError(f"{FOLDER}={named}: there is no {SCRIPT} in this folder; name the folder of llama.cpp's source, or unset it")
        return script
    if (_fetched() / SCRIPT).is_file():
        return _fetched() / SCRIPT
    found = shutil.which(SCRIPT)
    return Path(found) if found else None


def quantizer() -> Path | None:
    """llama.cpp's compiled llama-quantize, in TUNERY_LLAMA_CPP's folder or on PATH."""
    named = os.environ.get(FOLDER)
    folders = [Path(named).expanduser() / part for part in ("", "build/bin", "bin")] if named else []
    found = shutil.which("llama-quantize", path=os.pathsep.join(map(str, folders))) if folders else None
    found = found or shutil.which("llama-quantize")
    return Path(found) if found else None


def has_runtime() -> bool:
    """Whether llama.cpp itself can be run here, as PyPI's xllamacpp brings it (a compiled wheel)."""
    return importlib.util.find_spec("xllamacpp") is not None


def require() -> Path:
    """The converter. Raises MissingExtraError, with the line that brings what is missing."""
    script = converter()
    if script is None:
        raise MissingExtraError(
            f"a GGUF export needs llama.cpp's converter; fetch it (77 MB, once) with `{FETCH}`, or set {FOLDER} to a folder with {SCRIPT}"
        )
    if importlib.util.find_spec("sentencepiece") is None:
        raise MissingExtraError("llama.cpp's converter needs sentencepiece, not installed; install with: pip install 'tunery[gguf]'")
    return script


def fetch(progress: Progress | None = None) -> Path:
    """The converter's folder in Tunery's cache, fetched by pip when it is not there. Raises RunError with what pip said."""
    return build_once(_fetched(), lambda folder: _download(folder, progress), progress)


def _fetched() -> Path:
    return cache_folder() / "llama.cpp" / f"{PACKAGE}-{VERSION}"


def _download(folder: Path, progress: Progress | None) -> None:
    if progress:
        progress(f"fetching {PACKAGE} {VERSION} (77 MB) for llama.cpp's converter, once")
    with tempfile.TemporaryDirectory(prefix="tunery-llama-cpp-") as work:
        wanted = Path(work) / "requirements.txt"
        wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--require-hashes", "-d", work]
        result = subprocess.run(
            [*command, "-r", str(wanted), "--disable-pip-version-check", "--no-input"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        archive = next(Path(work).glob("*.tar.gz"), None)
        if result.returncode != 0 or archive is None:
            said = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
            errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or [f"exit code {result.returncode}"]
            raise RunError(f"pip could not fetch {PACKAGE} {VERSION} ({errors[0][:300]}); or set {FOLDER} to llama.cpp's source folder")
        if sha256_of(archive) != SHA256:
            raise RunError(f"{PACKAGE} {VERSION} came with another SHA-256 than {SHA256}; nothing of it was kept")
        unpack(archive, folder)


def unpack(archive: Path, folder: Path) -> None:
    """The converter's files of the package into `folder`, as they are there."""
    with tarfile.open(archive) as package:
        for member in package:
            _, _, name = member.name.partition("/vendor/llama.cpp/")
            if member.isfile() and name.startswith(WANTED) and ".." not in Path(name).parts:
                content = package.extractfile(member)
                assert content is not None  # it is a file
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content.read())
    if not (folder / SCRIPT).is_file():
        raise RunError(f"{archive.name} does not hold {SCRIPT}; set {FOLDER} to llama.cpp's source folder")


if __name__ == "__main__":
    try:
        print(fetch(lambda message: print(message, file=sys.stderr)))
    except TuneryError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
