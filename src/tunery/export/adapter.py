"""The adapter as PEFT's own files, with tokenizer and template: what vLLM, TGI and LoRAX load beside the base model."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from tunery.errors import InputError
from tunery.export.folder import copy_tokenizer, export_folder, state_padding, write_proof
from tunery.export.probes import verify_probes
from tunery.export.proof import folder_size
from tunery.export.source import ExportSource
from tunery.recipe import Options as _Options

SUMMARY = "the adapter alone, in PEFT's file format"
FILES = ("adapter_config.json", "adapter_model.safetensors")


class Options(_Options):
    """There is nothing to choose."""


def require(options: Options | None = None) -> None:
    """Nothing beyond the core."""


def export(source: ExportSource, out: Path, options: Options) -> dict[str, Any]:
    """Copy the adapter, and prove that PEFT computes with the copy what the trained model computes. See `Exporter.export`."""
    if source.adapter is None:
        raise InputError("this model has no adapter to export; choose merged or onnx")
    missing = [name for name in FILES if not (source.adapter / name).is_file()]
    if missing:
        raise InputError(f"{source.adapter}: {missing[0]} is missing, so there is no adapter here to export; train it again")
    with export_folder(out, source) as folder:
        started = source.start()
        # With the tensors that only training reads (PiSSA's start, P-tuning's network): this may take the place of the run's own adapter.
        for file in {source.adapter / FILES[0], *source.adapter.glob("*.safetensors")}:
            shutil.copyfile(file, folder / file.name)
        copy_tokenizer(source.base_folder, folder)
        verify_probes(source.probes, folder, "adapter")
        model = source.load_by_peft(folder)
        if source.head:
            state_padding(folder, model.config.get_text_config().pad_token_id)
        figures = source.reference.compare(source.engine(model), "adapter", source.progress)
        figures.require_same("adapter")
        entry: dict[str, Any] = {
            "path": str(out),
            "precision": "fp32",
            "max_logit_difference": figures.max_logit_difference,
            "greedy_match": figures.greedy_match,
            "seconds": round(time.monotonic() - started, 2),
            "bytes": folder_size(folder),
        }
        write_proof(folder, entry)
    return entry
