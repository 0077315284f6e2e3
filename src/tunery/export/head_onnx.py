"""A model with a head as ONNX: one graph from token ids and mask to the scores of the classes, for ONNX Runtime in any language.

By torch's own exporter (torch.export, then ONNX), since onnxruntime-genai's builder knows generation alone. The folder holds `model.onnx`,
`config.json` with the labels' names, and the tokenizer, as Optimum's `ORTModelFor...` classes read it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import RunError
from tunery.export.folder import copy_tokenizer, export_folder, state_padding, write_proof
from tunery.export.merged import merge
from tunery.export.probes import verify_probes
from tunery.export.proof import folder_size
from tunery.export.source import ExportSource
from tunery.infer.onnx_head import MODEL, OnnxHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST = 1_500_000_000
"""Bytes of weights that go into the one file; protobuf holds no more than 2 GB, so those of a larger model lie beside it."""


def export_head(source: ExportSource, out: Path) -> dict[str, Any]:
    """Merge, trace, and prove what ONNX Runtime computes with the folder. See `Exporter.export`."""
    who = "onnx fp32"
    with export_folder(out, source) as folder:
        started = source.start()
        model = merge(source)
        source.progress.show(f"{who}: building", 0)
        write_graph(model, folder / MODEL)
        model.config.architectures = [type(model).__name__]  # what `save_pretrained` of the model itself would add
        model.config.save_pretrained(folder)
        copy_tokenizer(source.base_folder, folder)
        state_padding(folder, model.config.get_text_config().pad_token_id)
        del model
        verify_probes(source.probes, folder, who)
        figures = source.reference.compare(OnnxHead(folder), who, source.progress)
        figures.require_same(who)
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


def write_graph(model: PreTrainedModel, file: Path) -> None:
    """`input_ids` and `attention_mask` (batch, length) int64 → `logits`, with any batch and length. Raises RunError when torch cannot."""
    import torch

    class Scores(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            return logits

    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    ids = torch.zeros((2, 12), dtype=torch.int64)  # sizes that are neither 1 nor equal, which the exporter would take for fixed
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    try:
        with torch.no_grad(), _quiet_exporter():
            torch.onnx.export(
                Scores().eval(),
                (ids, mask),
                str(file),
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamic_shapes={"input_ids": any_size, "attention_mask": any_size},
                dynamo=True,
                external_data=weights > LARGEST,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as e:
        last = (str(e).strip().splitlines() or [e.__class__.__name__])[0]
        raise RunError(f"torch could not export this model with its head to ONNX: {last[:300]}") from e


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's notices of operators that no model here has."""
    import warnings

    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
