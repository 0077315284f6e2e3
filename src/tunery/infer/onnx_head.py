"""A model with a head by ONNX Runtime: a folder that `export/onnx_head.py` made, without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence as Many
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import InputError, MissingExtraError
from tunery.models.heads import head_of
from tunery.models.load import context_length

if TYPE_CHECKING:
    import numpy as np

    from tunery.data.render import Sequence

MODEL = "model.onnx"


class OnnxHead:
    """An ONNX model folder (`model.onnx`, `config.json`, tokenizer) as a `HeadEngine`.

    Raises InputError when the folder cannot be used, MissingExtraError without onnxruntime.
    """

    name = "onnx"

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        head = head_of(folder)
        if head is None or not (folder / MODEL).is_file():
            raise InputError(f"{folder}: there is no ONNX model with a head here; make one with `tunery export RUN --to onnx --out DIR`")
        self.head, self.context = head, context_length(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._pad = int(config["pad_token_id"])
        runtime = import_runtime()
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # its warnings are about its own graph
        try:
            self._session = runtime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # the library has an error class of its own for each kind of failure
            raise InputError(f"{folder}: ONNX Runtime cannot load this model ({str(e).splitlines()[0][:300]}); export it again") from None

    def logits(self, sequences: Many[Sequence]) -> list[np.ndarray]:
        """See `HeadEngine.logits`."""
        from tunery.train.padded import batches

        found: dict[int, np.ndarray] = {}
        for batch in batches(sequences, self._pad):
            (values,) = self._session.run(["logits"], {"input_ids": batch.ids, "attention_mask": batch.mask})
            found.update(batch.cut(values, self.head.kind))
        return [found[n] for n in range(len(sequences))]


def import_runtime() -> Any:
    """The module onnxruntime. Raises MissingExtraError naming the line that installs it."""
    try:
        import onnxruntime
    except ImportError as e:
        raise MissingExtraError(
            f"ONNX models need onnxruntime, which is not installed ({e}); install it with: pip install 'tunery[onnx]'"
        ) from None
    return onnxruntime
