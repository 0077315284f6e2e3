"""Exports of models with a head: they load in transformers' and PEFT's own classes, and what is not the same model is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from tunery import methods, tasks
from tunery.data.rows import Row
from tunery.errors import InputError, ProofError
from tunery.export import adapter, merged, onnx
from tunery.export.head_proof import HeadReference, make_head_probes, proof_sequences
from tunery.export.source import ExportSource
from tunery.infer.classifier import open_classifier
from tunery.infer.head_engine import TorchHead
from tunery.infer.onnx_head import OnnxHead
from tunery.models.heads import Head
from tunery.models.load import context_length, load_model, load_tokenizer
from tunery.recipe import Named

LABELS = {"sequence": ("no", "yes", "maybe"), "token": ("B-X", "I-X", "O")}
TEXT = "The teacher reads a long book."


def source_of(base: Path, folder: Path, kind: Literal["sequence", "token"]) -> ExportSource:
    """A head and an adapter with random weights that matter, saved by our own code."""
    import torch

    head = Head(kind, LABELS[kind])
    lora: Any = methods.get("lora")
    options = lora.Options(rank=4)

    def attached() -> Any:
        return lora.attach(load_model(base, head=head, seed=1), options, 1)

    model = attached()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.1, generator=generator)
    lora.save(model, options, folder, str(base))

    def trained() -> Any:
        again = attached()
        lora.load(again, folder)
        return again.eval()

    task, chosen = tasks.of(Named(name={"sequence": "classify", "token": "tag"}[kind], options={"labels": list(head.labels)}))
    renderer = task.renderer(load_tokenizer(base), chosen)
    sequences = proof_sequences(renderer, context_length(base))
    return ExportSource(base, folder, [], make_head_probes(renderer), (), trained, head=head, sequences=sequences)


ALL = [("tiny_bert", "sequence"), ("tiny_llama", "token"), ("tiny_phi3", "sequence")]


@pytest.fixture(scope="module", params=ALL, ids=str)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    base, kind = request.param
    return source_of(request.getfixturevalue(base), tmp_path_factory.mktemp("adapter"), kind)


def scores(model: Any, folder: Path) -> Any:
    import torch

    with torch.no_grad():
        return model(**load_tokenizer(folder)([TEXT, "A river."], padding=True, return_tensors="pt")).logits


def automatic(kind: str) -> Any:
    import transformers

    return getattr(transformers, {"sequence": "AutoModelForSequenceClassification", "token": "AutoModelForTokenClassification"}[kind])


def own_scores(source: ExportSource) -> Any:
    assert source.trained is not None
    return scores(source.trained(), source.base_folder)


def test_peft_loads_the_adapter_and_the_head_over_transformers_class(source: ExportSource, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    assert source.head is not None
    entry = adapter.export(source, tmp_path / "adapter", adapter.Options())
    assert entry["greedy_match"] == 1.0
    assert entry["max_logit_difference"] < 1e-5
    base = automatic(source.head.kind).from_pretrained(source.base_folder, num_labels=3)
    base.config.get_text_config().pad_token_id = load_tokenizer(tmp_path / "adapter").pad_token_id
    found = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert torch.allclose(scores(found, tmp_path / "adapter"), own_scores(source), atol=1e-5)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}[source.head.kind]


def test_the_merged_folder_is_an_ordinary_model_with_the_labels_names(source: ExportSource, tmp_path: Path) -> None:
    import torch

    assert source.head is not None
    entry = merged.export(source, tmp_path / "merged", merged.Options())
    assert entry["greedy_match"] == 1.0
    model = automatic(source.head.kind).from_pretrained(tmp_path / "merged").eval()
    assert tuple(model.config.id2label[n] for n in range(3)) == source.head.labels
    assert torch.allclose(scores(model, tmp_path / "merged"), own_scores(source), atol=1e-4)
    classifier = open_classifier(str(tmp_path / "merged"), "torch")
    assert classifier is not None
    assert set(classifier.answer(TEXT)) >= ({"label", "probability"} if source.head.kind == "sequence" else {"tokens", "tags"})
    assert not (tmp_path / "merged" / "generation_config.json").exists()


@pytest.mark.parametrize("source", ALL[:2], indirect=True, ids=str)
def test_onnx_runtime_computes_the_same_for_any_batch_and_length(source: ExportSource, tmp_path: Path) -> None:
    import numpy as np
    import onnxruntime

    assert source.head is not None
    entry = onnx.export(source, tmp_path / "onnx", onnx.Options())
    assert entry["greedy_match"] == 1.0
    assert entry["max_logit_difference"] < 1e-3
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    tokens = load_tokenizer(tmp_path / "onnx")([TEXT, "A river."], padding=True, return_tensors="np")
    (found,) = session.run(None, {name: tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask")})
    seen = tokens["attention_mask"].astype(bool) if source.head.kind == "token" else slice(None)
    assert np.allclose(found[seen], own_scores(source).numpy()[seen], atol=1e-4)
    (alone,) = session.run(None, {"input_ids": tokens["input_ids"][:1, :1].astype(np.int64), "attention_mask": np.ones((1, 1), np.int64)})
    assert alone.shape[0] == 1
    classifier = open_classifier(str(tmp_path / "onnx"), "onnx")
    assert classifier is not None
    assert classifier.engine.name == "onnx"
    with pytest.raises(InputError, match="--engine onnx"):
        open_classifier(str(tmp_path / "onnx"), "torch")


def test_smaller_weights_are_refused_with_the_reason(source: ExportSource, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in fp32, not in int4: .*generation alone"):
        onnx.export(source, tmp_path / "onnx", onnx.Options(precision="int4"))
    assert not (tmp_path / "onnx").exists()


def test_another_head_fails_the_proof(tiny_bert: Path, tmp_path: Path) -> None:
    import torch

    source = source_of(tiny_bert, tmp_path / "adapter", "sequence")
    assert source.trained is not None
    assert source.head is not None
    model: Any = source.trained()
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
    with pytest.raises(ProofError, match="greedy_match"):
        source.reference.compare(TorchHead(model, source.head), "broken").require_same("broken")
    fewer = load_model(tiny_bert, head=Head("sequence", ("a", "b")))
    with pytest.raises(ProofError, match=r"scores of shape \(2,\) where the trained model gives \(3,\)"):
        source.reference.compare(TorchHead(fewer, Head("sequence", ("a", "b"))), "broken")


def test_a_proof_has_fifty_different_texts(tiny_bert: Path) -> None:
    task, options = tasks.of(Named(name="classify", options={"labels": ["a", "b"]}))
    renderer = task.renderer(load_tokenizer(tiny_bert), options)
    rows = [Row("label", {"text": "the cat reads" + " a river" * (n % 7), "label": "a", "weight": 1.0}, "f", n) for n in range(30)]
    own = [renderer.sequences(row)[0] for row in rows]
    found = proof_sequences(renderer, 1024, own)
    assert len(found) == len({s.tokens.tobytes() for s in found}) == 50
    assert [s.tokens.tolist() for s in found[:7]] == [s.tokens.tolist() for s in own[:7]]
    engine = TorchHead(load_model(tiny_bert, head=Head("sequence", ("a", "b"))), Head("sequence", ("a", "b")))
    figures = HeadReference.of(engine, found).compare(engine, "itself")
    assert (figures.greedy_match, figures.max_logit_difference) == (1.0, 0.0)


def test_a_folder_without_a_head_is_no_onnx_classifier(tiny_llama: Path) -> None:
    with pytest.raises(InputError, match="no ONNX model with a head"):
        OnnxHead(tiny_llama)
