"""The adapter merged into its base: an ordinary Hugging Face folder.

Merged in float32, then stored in the base checkpoint's own type. A 16-bit base gets 16-bit files: the float32 merge is proven first,
then that the files hold exactly its rounding, and the report's figures are those of the files as a user loads them.
"""

from __future__ import annotations

import json
import struct
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import InputError, ProofError, RunError
from tunery.export.folder import copy_tokenizer, export_folder, state_padding, write_generation_config, write_proof
from tunery.export.probes import verify_probes
from tunery.export.proof import folder_size
from tunery.export.source import ExportSource
from tunery.models.heads import Head
from tunery.models.load import automatic_class, quiet_transformers
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMMARY = "adapter and base as one model, in the base's own precision"

_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class Options(_Options):
    """There is nothing to choose: the precision is the base's."""


def require(options: Options | None = None) -> None:
    """Nothing beyond the core."""


def export(source: ExportSource, out: Path, options: Options) -> dict[str, Any]:
    """Merge, write, load again and prove. See `Exporter.export`."""
    dtype = stored_type(source.base_folder)
    with export_folder(out, source) as folder:
        started = source.start()
        model = merge(source)
        entry: dict[str, Any] = {"path": str(out), "precision": _SHORT[dtype]}
        if dtype != "float32":
            own = source.reference.compare(source.engine(model), "merged", source.progress)
            own.require_same("merged, before rounding")
            entry["float32"] = {"max_logit_difference": own.max_logit_difference, "greedy_match": own.greedy_match}
        save(model, source, folder, dtype)
        verify_probes(source.probes, folder, "merged")
        saved = _load_as_saved(folder, source.head)
        _require_equal(model, saved)
        del model
        figures = source.reference.compare(source.engine(saved), "merged", source.progress)
        if dtype == "float32":
            figures.require_same("merged")
        entry |= {
            "max_logit_difference": figures.max_logit_difference,
            "greedy_match": figures.greedy_match,
            "seconds": round(time.monotonic() - started, 2),
            "bytes": folder_size(folder),
        }
        write_proof(folder, entry)
    return entry


def merge(source: ExportSource) -> PreTrainedModel:
    """The float32 model with the adapter's weights inside its own; without an adapter the trained model, or the base itself."""
    if source.adapter is None:
        return source.trained() if source.trained else source.load_base()
    try:
        model: PreTrainedModel = source.load_by_peft().merge_and_unload(safe_merge=True)
    except ValueError as e:  # safe_merge: not finite
        raise RunError(f"{source.adapter}: cannot be merged ({e}); the adapter is damaged, or training diverged") from None
    _unwrap_heads(model)
    return model.eval()


def _unwrap_heads(model: PreTrainedModel) -> None:
    """Put a head that was trained whole in its place where PEFT has not: its layer-norm tuning unloads its own layers only (peft 0.21)."""
    from peft.utils import AuxiliaryTrainingWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            parent, _, leaf = name.rpartition(".")
            new = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
            setattr(model.get_submodule(parent), leaf, new)


def save(model: PreTrainedModel, source: ExportSource, folder: Path, dtype: str) -> None:
    """Config, safetensors in `dtype`, tokenizer, template and generation settings; `model` itself is then in `dtype`."""
    import torch
    from transformers import GenerationConfig

    model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    if not source.head:
        # What the base brought is written below as it came; transformers refuses to write some settings that hubs hold.
        model.generation_config = GenerationConfig(eos_token_id=list(source.stop_ids))
    with quiet_transformers():
        model.save_pretrained(folder)
    copy_tokenizer(source.base_folder, folder)
    if source.head:
        state_padding(folder, model.config.get_text_config().pad_token_id)
    else:
        write_generation_config(source.base_folder, folder, source.stop_ids)


def stored_type(folder: Path) -> str:
    """The type of most values in a folder's safetensors files: float32, bfloat16 or float16. Only the headers are read.

    Format: https://huggingface.co/docs/safetensors (8 bytes of length, then JSON).
    """
    counts: Counter[str] = Counter()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as f:
            header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        for name, tensor in header.items():
            if name != "__metadata__" and tensor["dtype"] in _TYPES:
                counts[tensor["dtype"]] += tensor["data_offsets"][1] - tensor["data_offsets"][0]
    if not counts:
        raise InputError(f"{folder}: there are no float weights in safetensors here; choose a model with safetensors files")
    return _TYPES[counts.most_common(1)[0][0]]


def _load_as_saved(folder: Path, head: Head | None) -> Any:
    """As a user loads it: transformers' own class and defaults."""
    with quiet_transformers():
        return automatic_class(head).from_pretrained(folder, local_files_only=True).eval()


def _require_equal(model: PreTrainedModel, saved: PreTrainedModel) -> None:
    """Raises ProofError unless every tensor that was loaded is the one that was saved, in type and value."""
    import torch

    expected, found = model.state_dict(), saved.state_dict()
    if expected.keys() != found.keys():
        raise ProofError(
            f"merged: the saved model has other weights than the merged one ({sorted(expected.keys() ^ found.keys())[0]} first); the export was not kept"
        )
    for name, tensor in expected.items():
        if found[name].dtype != tensor.dtype or not torch.equal(found[name], tensor):
            raise ProofError(f"merged: {name} was not saved as it is in memory; the export was not kept")
