"""Low-rank adapters on disk: `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes them; all tensors float32.

An adapter that began by PiSSA is written as the ordinary LoRA of twice the rank that adds the same to the untouched base, so that any
program loads it. What training goes on from, to the bit, lies beside it in `pissa.safetensors`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import InputError
from tunery.methods._low_rank import LowRankOptions, fits
from tunery.models.heads import head_modules

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tunery.methods._lora_linear import LoraLinear

CONFIG, TENSORS, PISSA = "adapter_config.json", "adapter_model.safetensors", "pissa.safetensors"
PREFIX = "base_model.model."


def as_saved(options: LowRankOptions) -> tuple[int, float]:
    """(rank, alpha) of the adapter that is written: after PiSSA of twice the rank, with the alpha that keeps the scale."""
    if getattr(options, "start", "default") != "pissa":
        return options.rank, options.alpha
    return 2 * options.rank, options.alpha * (math.sqrt(2) if options.rslora else 2)


def for_use(options: Any) -> Any:
    """The options with which a finished adapter is loaded to be used: what it began from does not matter any more."""
    if getattr(options, "start", "default") == "default":
        return options
    rank, alpha = as_saved(options)
    return options.model_copy(update={"rank": rank, "alpha": alpha, "start": "default"})


def save(model: PreTrainedModel, options: LowRankOptions, folder: Path, base: str, dora: bool = False) -> None:
    """Write the adapter, a task's head and trained tokens' rows; `base` is the name of the model that they fit."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    rank, alpha = as_saved(options)
    layers = adapted(model)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        use_dora=dora,
        target_modules=_shortest_names(model, list(layers)),
        modules_to_save=head_modules(model) or None,
        trainable_token_indices=_token_indices(model),
        bias="none",
        task_type=_task_type(model),
        base_model_name_or_path=base,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {PREFIX + key: value for key, value in _whole_tensors(model).items()}
    for name, layer in layers.items():
        a, b = layer.factors()
        tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"] = a, b
        if layer.dora:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = layer.lora_magnitude_vector
    save_file({k: _plain(t) for k, t in tensors.items()}, str(folder / TENSORS), metadata={"format": "pt"})
    exact = {
        f"{n}.{part}": _plain(getattr(layer, part)) for n, layer in layers.items() if layer.start_A is not None for part in _PISSA_PARTS
    }
    if exact:
        save_file(exact, str(folder / PISSA), metadata={"format": "pt"})


_PISSA_PARTS = ("lora_A", "lora_B", "start_A", "start_B")


def load(model: PreTrainedModel, folder: Path) -> None:
    """Read what `save` or PEFT wrote into a model that has the same adapters. Raises InputError when it does not fit."""
    import torch
    from safetensors.torch import load_file

    file = folder / TENSORS
    if not file.is_file():
        raise InputError(f"{folder}: there is no adapter here ({TENSORS} is missing); name a run or an adapter folder")
    tensors = load_file(str(file))
    exact = load_file(str(folder / PISSA)) if (folder / PISSA).is_file() else {}

    def take(key: str, own: torch.Tensor, source: dict[str, torch.Tensor]) -> None:
        value = source.pop(key, None)
        if value is None or value.shape != own.shape:
            have = "nothing" if value is None else tuple(value.shape)
            name = key.removeprefix(PREFIX).removesuffix(".weight")
            raise InputError(f"{file}: {name} should be {tuple(own.shape)} and is {have}; rank, targets or base model differ")
        with torch.no_grad():
            own.copy_(value)

    for key, own in _whole_tensors(model).items():
        take(PREFIX + key, own, tensors)
    for name, layer in adapted(model).items():
        began = layer.start_A is not None
        if began and not exact:
            raise InputError(f"{folder}: this adapter did not begin by PiSSA ({PISSA} is missing); leave method.start out")
        for part in _PISSA_PARTS if began else ("lora_A", "lora_B"):
            if began:
                take(f"{name}.{part}", getattr(layer, part), exact)
            else:
                take(f"{PREFIX}{name}.{part}.weight", getattr(layer, part), tensors)
        if began:
            for part in ("lora_A", "lora_B"):
                tensors.pop(f"{PREFIX}{name}.{part}.weight", None)
        if layer.dora:
            take(f"{PREFIX}{name}.lora_magnitude_vector", layer.lora_magnitude_vector, tensors)
    if tensors:
        raise InputError(f"{file}: holds {next(iter(tensors))}, which this recipe does not train; the targets differ")


def check_start(folder: Path, options: LowRankOptions, dora: bool = False) -> None:
    """An adapter to continue from must be of the recipe's kind, rank and scale: the same matrices with another scale are another model."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if (folder / "model.safetensors").is_file():
            raise InputError(
                f"train.init_from: {folder} holds a whole model's weights, not an adapter; name it as the `model` and leave init_from out"
            ) from None
        raise InputError(
            f"train.init_from: there is no adapter in {folder} (no readable {CONFIG}); name a run or an adapter folder"
        ) from None
    if config.get("peft_type", "LORA") != "LORA":
        raise InputError(f"train.init_from: the adapter in {folder} is {config['peft_type']}, not LoRA; choose the method that made it")
    if bool(config.get("use_dora")) != dora:
        made, mend = ("DoRA", "dora") if config.get("use_dora") else ("LoRA without magnitudes", "lora")
        raise InputError(f"train.init_from: the adapter in {folder} is {made}; set the method to {mend} (qlora: set method.dora to match)")
    pissa = getattr(options, "start", "default") == "pissa"
    if pissa and not (folder / PISSA).is_file():
        raise InputError(f"train.init_from: the adapter in {folder} did not begin by PiSSA; leave method.start out")
    rank, alpha = as_saved(options)
    for key, own, written, theirs in (
        ("rank", rank, options.rank, config.get("r")),
        ("alpha", alpha, options.alpha, config.get("lora_alpha")),
        ("rslora", options.rslora, options.rslora, bool(config.get("use_rslora"))),
    ):
        if own != theirs:
            value = theirs if own == written or not theirs else type(written)(theirs * written / own)
            raise InputError(
                f"train.init_from: the adapter in {folder} has {key} {value} and the recipe {written}; set method.{key} to {value}"
            )
    if bool(config.get("trainable_token_indices")) != bool(options.train_tokens):
        has, mend = ("trained tokens", "name the same") if config.get("trainable_token_indices") else ("no trained tokens", "leave it out")
        raise InputError(f"train.init_from: the adapter in {folder} has {has}, unlike method.train_tokens in the recipe; {mend} there")


def adapted(model: PreTrainedModel) -> dict[str, LoraLinear]:
    """The adapters' layers, by name."""
    from tunery.methods._lora_linear import LoraLinear

    return {n: m for n, m in model.named_modules() if isinstance(m, LoraLinear)}


def _whole_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What is stored as itself beside the adapters: heads as PEFT's `modules_to_save`, tokens' rows as `trainable_token_indices`."""
    from tunery.methods._tokens import token_layers

    found: dict[str, torch.Tensor] = {}
    for name, layer in token_layers(model):
        found[f"{name}.token_adapter.trainable_tokens_delta"] = layer.rows
    for name in head_modules(model):
        found |= {f"{name}.{key}": value for key, value in model.get_submodule(name).state_dict(keep_vars=True).items()}
    return found


def _token_indices(model: PreTrainedModel) -> Any:
    """A list for the embedding alone, to which PEFT ties a tied head; by name where the head's rows are its own."""
    from tunery.methods._tokens import token_layers

    layers = dict(token_layers(model))
    if len(layers) < 2:
        return next((layer.ids for layer in layers.values()), None)
    return {name: layer.ids for name, layer in layers.items()}


def _task_type(model: PreTrainedModel) -> str:
    kind = model.__class__.__name__
    return (
        "SEQ_CLS" if kind.endswith("ForSequenceClassification") else "TOKEN_CLS" if kind.endswith("ForTokenClassification") else "CAUSAL_LM"
    )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def _shortest_names(model: PreTrainedModel, chosen: list[str]) -> list[str]:
    """The last parts of the names where they mean exactly the adapted layers, else the full names."""
    leaves = sorted({n.rpartition(".")[2] for n in chosen})
    meant = {n for n, _ in model.named_modules() if any(fits(n, leaf) for leaf in leaves)}
    return leaves if meant == set(chosen) else sorted(chosen)
