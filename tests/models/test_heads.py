"""Models with a head: which layers are new, what is refused, and that the labels are in the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from tunery.errors import InputError
from tunery.models.heads import Head, head_modules, head_of, new_layers
from tunery.models.load import load_model, load_tokenizer

LABELS = ("no", "yes", "maybe")


@pytest.mark.parametrize(
    ("folder", "kind", "modules"),
    [
        ("tiny_bert", "sequence", ["classifier", "bert.pooler"]),
        ("tiny_bert", "token", ["classifier"]),
        ("tiny_llama", "sequence", ["score"]),
        ("tiny_phi3", "token", ["score"]),
    ],
)
def test_a_head_is_what_began_untrained(
    request: pytest.FixtureRequest, folder: str, kind: Literal["sequence", "token"], modules: list[str]
) -> None:
    path: Path = request.getfixturevalue(folder)
    model: Any = load_model(path, head=Head(kind, LABELS))
    assert head_modules(model) == modules
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.get_text_config().pad_token_id == load_tokenizer(path).pad_token_id
    assert not any(p.requires_grad for p in model.parameters())
    assert head_modules(load_model(path)) == [] if folder != "tiny_bert" else True


def test_new_layers_begin_the_same_for_the_same_seed(tiny_bert: Path) -> None:
    import torch

    one, again, other = (load_model(tiny_bert, head=Head("sequence", LABELS), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[k], again[k]) for k in one)
    different = {k.rpartition(".")[0] for k in one if not torch.equal(one[k], other[k])}
    assert different == {"classifier", "bert.pooler.dense"}


def test_a_missing_layer_of_the_base_is_still_refused() -> None:
    assert new_layers(["bert.pooler.dense.weight", "classifier.bias"]) == (("bert.pooler", "classifier"), [])
    assert new_layers(["bert.encoder.layer.0.output.dense.weight"])[1] == ["bert.encoder.layer.0.output.dense.weight"]


def test_a_model_with_a_head_keeps_it_and_its_labels(tiny_bert: Path, tmp_path: Path) -> None:
    import torch

    head = Head("sequence", LABELS)
    model: Any = load_model(tiny_bert, head=head)
    model.save_pretrained(tmp_path)
    load_tokenizer(tiny_bert).save_pretrained(tmp_path)
    assert head_of(tmp_path) == head
    assert head_of(tiny_bert) is None
    again: Any = load_model(tmp_path, head=head, seed=9)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    with pytest.raises(InputError, match="came with a head for the labels no, yes, maybe, and the task has yes, no, maybe"):
        load_model(tmp_path, head=Head("sequence", ("yes", "no", "maybe")))
    with pytest.raises(InputError, match="the task has a, b"):
        load_model(tmp_path, head=Head("sequence", ("a", "b")))


def test_the_end_token_pads_where_there_is_no_pad_token(tiny_llama: Path, tmp_path: Path) -> None:
    import json
    import shutil

    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    for name in ("tokenizer_config.json", "config.json"):
        content = json.loads((folder / name).read_text())
        content.pop("pad_token", None)
        content.pop("pad_token_id", None)
        (folder / name).write_text(json.dumps(content))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id is None
    assert load_model(folder, head=Head("sequence", LABELS)).config.pad_token_id == tokenizer.eos_token_id
