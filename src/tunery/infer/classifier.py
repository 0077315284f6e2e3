"""Asking a model with a head about one text: which label, or which tag each word has."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunery import tasks
from tunery.errors import InputError
from tunery.infer.head_engine import HeadEngine, TorchHead
from tunery.infer.onnx_head import OnnxHead
from tunery.infer.open_engine import load_run
from tunery.models.heads import Head, head_of
from tunery.models.load import load_model, load_tokenizer
from tunery.run import Run

WORDS = re.compile(r"\w+|[^\w\s]")
"""Words of a text as corpora of tagged words divide it: runs of letters and digits, and every other character by itself."""


@dataclass(frozen=True)
class Classifier:
    """A head's engine with the renderer of its task; `answer` asks it."""

    engine: HeadEngine
    renderer: Any

    def answer(self, text: str) -> dict[str, Any]:
        """{"label", "probability", "probabilities"}, or of a tagger {"tokens", "tags"}; `cut` says that not all of the text was read.

        Raises InputError for a text without a word.
        """
        import numpy as np
        from scipy.special import softmax

        from tunery.data.render import Sequence

        words = WORDS.findall(text)
        if not words:
            raise InputError("there is nothing to read; write some words")
        read = text if self.engine.head.kind == "sequence" else " ".join(words)
        (encoding,) = self.renderer.encode([read])
        ids = np.array(encoding.ids, dtype=np.int32)
        whole = Sequence(ids, np.zeros(len(ids), np.float32), np.full(len(ids), -1, np.int32))
        sequence = whole.cut(self.engine.context, self.renderer.tail)
        (logits,) = self.engine.logits([sequence])
        cut = len(sequence.tokens) < len(ids)
        labels = self.engine.head.labels
        if self.engine.head.kind == "token":
            best = [labels[n] for n in logits.argmax(-1)]
            seen = len(sequence.tokens) - (self.renderer.tail if cut else 0)
            _, places = self.renderer.placed(words)
            return {"tokens": words, "tags": [best[p] if 0 <= p < seen else self.renderer.lost for p in places], "cut": cut}
        chances = softmax(logits.astype(np.float64))
        order = np.argsort(-chances, kind="stable")
        return {
            "label": labels[order[0]],
            "probability": float(chances[order[0]]),
            "probabilities": {labels[n]: float(chances[n]) for n in order},
            "cut": cut,
        }


def open_classifier(name: str, engine: str, say: Callable[[str], Any] | None = None) -> Classifier | None:
    """The classifier in a run directory or in a model folder with a head, None where there is no head. engine: `torch` or `onnx`.

    Raises InputError for an unfinished run, or a run without the export that the engine needs.
    """
    path = Path(name)
    if (path / "recipe.yaml").is_file():
        return _of_run(Run.open(path), engine, say)
    head = head_of(path) if path.is_dir() else None
    if head is None:
        return None
    plain = any(label != "O" and label[:2] not in ("B-", "I-") for label in head.labels)
    task: Any = tasks.get("classify" if head.kind == "sequence" else "tag")
    options = {"labels": head.labels, **({"scheme": "plain"} if head.kind == "token" and plain else {})}
    renderer = task.renderer(load_tokenizer(path), task.Options.model_validate(options))
    if engine == "onnx":
        return Classifier(OnnxHead(path), renderer)
    if not (path / "model.safetensors").is_file() and (path / "model.onnx").is_file():
        raise InputError(f"{name}: this folder holds an ONNX model; ask it with --engine onnx")
    return Classifier(TorchHead(load_model(path, head=head), head), renderer)


def _of_run(run: Run, engine: str, say: Callable[[str], Any] | None) -> Classifier | None:
    task, options = tasks.of(run.recipe().task)
    if task.FORM not in ("sequence", "token"):
        return None
    if engine == "onnx":
        folder = run.path / "onnx"
        if not folder.is_dir():
            raise InputError(
                f"{run.path}: this run was not exported to ONNX; do it with `tunery export {run.path} --to onnx --out {folder}`"
            )
        return Classifier(OnnxHead(folder), task.renderer(load_tokenizer(folder), options))
    model, tokenizer = load_run(run, progress=say)
    return Classifier(TorchHead(model, Head(task.FORM, tuple(options.labels))), task.renderer(tokenizer, options))  # type: ignore[arg-type]
