from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model

from tunery.errors import InputError
from tunery.models.load import context_length, count_parameters, load_model, load_tokenizer

MESSAGES = [{"role": "user", "content": "Hello 12"}]


def test_each_architecture_loads_frozen(tiny_any: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = load_model(tiny_any)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.dtype == torch.float32
    ids = torch.tensor([load_tokenizer(tiny_any)("The cat likes cold water.").input_ids])
    with torch.no_grad():
        ours = model(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(tiny_any, attn_implementation="eager")(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert ours.std() > 0.01


def test_phi3_has_fused_layers(tiny_phi3: Path) -> None:
    import torch

    from tunery.models.catalogue import FUSED

    linear = {name.split(".")[-1] for name, module in load_model(tiny_phi3).named_modules() if isinstance(module, torch.nn.Linear)}
    assert linear == {*FUSED, "lm_head"}


@pytest.mark.parametrize(("dtype", "attention"), [("bfloat16", "sdpa"), ("float32", "eager")])
def test_precision_and_attention_are_passed_on(tiny_qwen: Path, dtype: str, attention: str) -> None:
    import torch

    model = load_model(tiny_qwen, dtype=dtype, attention=attention)
    assert model.dtype == getattr(torch, dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert model.config._attn_implementation == attention


def test_tied_parameters_count_once(tiny_llama: Path, tiny_phi3: Path) -> None:
    embedding = 512 * 64
    layer = 64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 160 + 2 * 64
    assert count_parameters(load_model(tiny_llama)) == embedding + 2 * layer + 64
    assert count_parameters(load_model(tiny_phi3)) == 2 * embedding + 2 * layer + 64


def test_the_tokenizer_comes_with_its_template(tiny_any: Path) -> None:
    tokenizer = load_tokenizer(tiny_any)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHello 12<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_loading_is_quiet_and_leaves_settings_alone(tiny_llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    logging.set_verbosity_info()
    try:
        load_model(tiny_llama)
        load_tokenizer(tiny_llama)
        assert logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity_error()
    assert capfd.readouterr() == ("", "")


def test_weights_that_do_not_fill_the_architecture_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    shutil.copytree(tiny_llama, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors of the architecture \(model\.layers\.1\.mlp\.up_proj\.weight first\)"):
        load_model(folder)
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][:5].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="transformers cannot load this model"):
        load_model(folder)
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(InputError, match="transformers cannot load this model"):
        load_model(folder)


def test_what_cannot_be_loaded_is_said(tiny_llama: Path, tmp_path: Path) -> None:
    import torch

    with pytest.raises(InputError, match=r"dtype 'float8' is unknown; choose float32 or bfloat16"):
        load_model(tiny_llama, dtype="float8")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="sees no GPU"):
            load_model(tiny_llama, device="cuda:0")
    with pytest.raises(InputError, match="there is no tokenizer here"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot load this tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"max_position_embeddings": 4096, "sliding_window": 2047}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 32768}}, 32768),
        # Phi-3 128k and Llama 3: the length is the scaled one already
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0]},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
        ({"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "linear", "factor": 8.0}}, 131072),
        # Qwen: yarn over 32768; dynamic scaling
        (
            {"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
            131072,
        ),
        (
            {
                "max_position_embeddings": 40960,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 4096, "rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 4096),
        ({"model_type": "roberta", "max_position_embeddings": 514}, 512),
        # Gemma 3 has rope parameters by layer type
        ({"max_position_embeddings": 32768, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, 32768),
    ],
)
def test_context_length(config: dict[str, Any], length: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_length(tmp_path) == length


def test_context_length_of_a_folder(tiny_any: Path, tmp_path: Path) -> None:
    assert context_length(tiny_any) == 1024
    with pytest.raises(InputError, match=r"no config\.json"):
        context_length(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="context length is not stated"):
        context_length(tmp_path)


def test_the_fixture_models_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first, again, other = (tiny_model(tmp_path / str(n), "llama", seed=seed) for n, seed in enumerate((0, 0, 1)))
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]
