"""A GGUF file made into an ordinary model folder: float32 safetensors, tokenizer, chat template.

GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) holds weights, mostly quantised, with the tokenizer and
the template in one file. transformers reads it; here the weights are dequantised once and kept in the cache, by the
file's hash. The conversion runs in a process of its own: it holds the model twice, and a run's `peak_memory_bytes`
should not depend on whether the cache was warm.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tunery.errors import InputError, RunError, TuneryError
from tunery.models.cache import Progress, build_once, cache_folder
from tunery.models.hashes import cached_sha256

_FORMAT = 1  # counts up when what `_convert` writes changes, so that old cache entries are not used
# Tokenizers that split every digit off before anything else, as llama.cpp's `tokenizer.ggml.pre` names them.
# transformers' GGUF reader leaves that step out, which changes the tokens wherever white space precedes a digit.
_DIGITS_ALONE = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}


def folder_of(file: Path, progress: Progress | None = None) -> Path:
    """The folder that holds the dequantised model, converting `file` once.

    Raises InputError when it is not a GGUF file or transformers does not know its architecture.
    """
    check_is_gguf(file)
    digest = cached_sha256(file)
    target = cache_folder() / "models" / f"{file.stem}-{digest[:16]}-{_FORMAT}"

    def build(folder: Path) -> None:
        if progress:
            progress(f"converting {file.name} ({file.stat().st_size / 1e6:.0f} MB) to float32 safetensors, once")
        convert(file, folder)

    return build_once(target, build, progress)


def check_is_gguf(file: Path) -> None:
    """Raise InputError unless the file begins as GGUF does."""
    try:
        with file.open("rb") as f:
            magic = f.read(4)
    except OSError as e:
        raise InputError(f"{file}: cannot be read ({e.strerror}); check the path and its permissions") from None
    if magic != b"GGUF":
        raise InputError(f"{file}: this is not a GGUF file (it does not begin with GGUF); download it again, or name another model")


def convert(file: Path, folder: Path) -> None:
    """Write the model in `file` into the empty `folder`, in a process of its own."""
    source_root = str(Path(__file__).parents[2])
    path = os.pathsep.join(p for p in (source_root, os.environ.get("PYTHONPATH")) if p)
    result = subprocess.run(
        [sys.executable, "-m", "tunery.models.gguf_file", str(file), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode == 0:
        return
    last = (result.stderr.strip().splitlines() or ["no message"])[-1]
    if result.returncode == InputError.exit_code:
        raise InputError(last)
    if result.returncode < 0:
        raise RunError(
            f"{file}: the conversion was killed by signal {-result.returncode}; it needs about the float32 model's size twice in memory"
        )
    raise RunError(f"{file}: the conversion failed: {last}")


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    quantisation, pre_tokenizer = _read_header(file)
    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except (ValueError, KeyError, NotImplementedError) as e:
        reason = str(e).splitlines()[0] if str(e) else e.__class__.__name__
        raise InputError(
            f"{file}: transformers cannot read this GGUF file ({reason}); use the model's safetensors folder or hub id"
        ) from None
    # transformers refuses to save what it believes to be quantised; these weights no longer are.
    for holder, mark in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
    ):
        if mark in vars(holder):
            delattr(holder, mark)
    if pre_tokenizer in _DIGITS_ALONE:
        from tokenizers import pre_tokenizers

        inner = tokenizer.backend_tokenizer.pre_tokenizer
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), inner])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source = {"file": file.name, "sha256": cached_sha256(file), "note": f"dequantised {quantisation}"}
    (folder / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


def _read_header(file: Path) -> tuple[str, str]:
    """The quantisation of most weights, and the name of the tokenizer's first step."""
    from collections import Counter

    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except (ValueError, IndexError, KeyError) as e:
        raise InputError(f"{file}: the GGUF file is damaged or cut short ({e}); download it again") from None
    weights: Counter[str] = Counter()
    for tensor in reader.tensors:
        weights[tensor.tensor_type.name] += int(tensor.n_elements)
    field = reader.fields.get("tokenizer.ggml.pre")
    return (weights.most_common(1)[0][0] if weights else "weights"), str(field.contents()) if field else ""


if __name__ == "__main__":
    try:
        _convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except TuneryError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
