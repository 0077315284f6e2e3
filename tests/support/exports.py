"""What exporters are handed in tests: a base with a random adapter that matters, and the trained model by our own code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunery.data.render import Renderer
from tunery.export.probes import make_probes
from tunery.export.prompts import proof_prompts
from tunery.export.source import ExportSource
from tunery.methods import lora
from tunery.models.load import context_length, load_model, load_tokenizer

OPTIONS = lora.Options(rank=8, alpha=16.0)


def random_adapter(base: Path, folder: Path, std: float, seed: int = 0) -> Path:
    """An adapter as PEFT itself writes it, on every linear layer, with a second matrix that is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = get_peft_model(
            load_model(base), LoraConfig(r=OPTIONS.rank, lora_alpha=int(OPTIONS.alpha), target_modules="all-linear", task_type="CAUSAL_LM")
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    return folder


def in_type(base: Path, folder: Path, dtype: str) -> Path:
    """The same model with its weights stored in another type."""
    import torch

    model: Any = load_model(base).to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return folder


def loaded_by_tunery(base: Path, adapter: Path) -> Callable[[], Any]:
    """The trained model as our own training code holds it, without PEFT."""

    def load() -> Any:
        model = load_model(base)
        lora.attach(model, OPTIONS, seed=5)
        lora.load(model, adapter)
        return model.eval()

    return load


def source_of(base: Path, adapter: Path | None, count: int | None = None, **settings: Any) -> ExportSource:
    renderer = Renderer(load_tokenizer(base))
    if adapter is not None:
        settings.setdefault("trained", loaded_by_tunery(base, adapter))
    prompts = proof_prompts(renderer, context_length(base))[:count]
    return ExportSource(base, adapter, prompts, make_probes(renderer), renderer.stop_ids, **settings)


def stopping(source: ExportSource) -> tuple[list[int], list[int], int]:
    """A prompt, its greedy continuation, and a token that first comes a few tokens into that: as a stop token it must end the answer."""
    for prompt, answer in zip(source.prompts, source.reference.continuations, strict=True):
        for token in answer[3:12]:
            if token not in answer[:3]:
                return prompt, answer, token
    raise AssertionError("every continuation of this random model only repeats itself; choose another seed")
