"""Prompt learning: virtual tokens in front of every row, as embeddings (prompt and P-tuning) or as keys and values (prefix tuning).

The model stays the same object. Two hooks on its backbone, the part below the output layer, put the virtual tokens in front when nothing
is in the cache yet, lengthen mask and positions by them, and take their outputs away again; so whatever calls the model (training,
likelihoods, generation with left padding and a cache) sees rows of real tokens only. The encoders of the virtual tokens are PEFT's, and
the file is PEFT's format: `prompt_embeddings`, the encoder's output. Where the encoder is more than that table, its own parameters are in
`prompt_encoder.safetensors` beside it, for training to go on from.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import InputError
from tunery.methods._peft import NAME, check_config, quiet_peft, read_into, task_type, write
from tunery.models.heads import head_modules
from tunery.models.load import context_length
from tunery.refusal import Refusal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ENCODER = "prompt_encoder.safetensors"
KEY = "prompt_embeddings"
NOT_MERGED = Refusal(
    when={"export": ("merged", "onnx", "gguf")},
    reason="virtual tokens are inputs, not changes of weights: there is nothing to merge them into, and these formats hold weights alone",
    source="https://huggingface.co/docs/peft/conceptual_guides/prompting",
    instead="export: [adapter]",
)


@dataclass(frozen=True)
class Virtual:
    """The functions of the `Method` protocol for one of PEFT's prompt-learning methods.

    kind: PEFT's `peft_type`. config: (model, options) → the PEFT configuration, without what follows from the model. same: see `Injected`.
    """

    kind: str
    config: Callable[[PreTrainedModel, Any], Any]
    same: Mapping[str, str]

    def attach(self, model: PreTrainedModel, options: Any, seed: int) -> PreTrainedModel:
        """Put virtual tokens in front of what `model` reads; only they, and a task's head, learn. They depend on `seed` alone."""
        import torch
        from peft import PEFT_TYPE_TO_TUNER_MAPPING

        from tunery.methods._heads import train_heads

        whole: Any = model
        whole.requires_grad_(False)
        config = _fill(self.config(model, options), model)
        made: list[Any] = [config] if self.kind != "PROMPT_TUNING" else [config, model.get_input_embeddings()]
        with torch.random.fork_rng(devices=[]), quiet_peft():
            torch.manual_seed(seed)  # PEFT draws on the CPU
            encoder = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](*made)
        whole.prompt_encoder = encoder.float().to(model.device)
        whole.peft_config = {NAME: config}
        whole.virtual = _Tokens(model, config)
        whole.virtual_tokens = config.num_virtual_tokens
        whole.rows_apart = True
        if model.config._attn_implementation not in ("eager", "sdpa"):  # that of packs knows the rows' own tokens only
            model.set_attn_implementation("eager" if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) else "sdpa")
        train_heads(model)
        return model

    def save(self, model: PreTrainedModel, options: Any, folder: Path, base: str) -> None:
        """Write PEFT's two files, and the encoder's parameters where they are more than its output."""
        from safetensors.torch import save_file

        whole: Any = model
        config = whole.peft_config[NAME]
        tensors = {KEY: _encoded(whole.prompt_encoder, config), **_heads(model)}
        write(folder, config, tensors, model, base)
        if not _is_table(whole.prompt_encoder):
            state = {name: t.detach().cpu().contiguous() for name, t in whole.prompt_encoder.state_dict().items()}
            save_file(state, str(folder / ENCODER), metadata={"format": "pt"})

    def check_start(self, folder: Path, options: Any) -> None:
        """See `Method.check_start`: the same method with as many virtual tokens, and its encoder when it has one."""
        check_config(folder, self.kind, options, self.same)
        if self._encodes(options) and not (folder / ENCODER).is_file():
            raise InputError(
                f"train.init_from: {folder} holds the virtual tokens without the encoder that made them ({ENCODER}); name the run that trained them"
            )

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Read what `save` or PEFT wrote. Virtual tokens without their encoder can be used, but learn no more."""
        import torch

        whole: Any = model
        if _is_table(whole.prompt_encoder):
            read_into({KEY: whole.prompt_encoder.embedding.weight, **_heads(model)}, folder)
            return
        made = _encoded(whole.prompt_encoder, whole.peft_config[NAME])
        read_into({KEY: made, **_heads(model)}, folder)  # for its checks, and the head
        if (folder / ENCODER).is_file():
            from safetensors.torch import load_file

            try:
                whole.prompt_encoder.load_state_dict(load_file(str(folder / ENCODER)))
            except RuntimeError:
                raise InputError(
                    f"{folder / ENCODER}: this encoder has other layers than the recipe's; the method's options differ"
                ) from None
            return
        fixed = torch.nn.Embedding.from_pretrained(made, freeze=True)
        whole.prompt_encoder = torch.nn.Sequential(OrderedDict(embedding=fixed)).to(model.device)

    def virtual_tokens(self, options: Any) -> int:
        """How many of the model's positions the virtual tokens take."""
        return int(options.virtual_tokens)

    def _encodes(self, options: Any) -> bool:
        return self.kind == "P_TUNING" or bool(getattr(options, "projection", False))


class _Tokens:
    """The virtual tokens of one model, and the two hooks that put them before its rows."""

    def __init__(self, model: PreTrainedModel, config: Any) -> None:
        import inspect

        self.model: Any = model
        self.config = config
        self.count = int(config.num_virtual_tokens)
        self.in_front = False
        """Whether the pass that is under way has virtual tokens among its outputs."""
        self.context = context_length(model.name_or_path)
        backbone = model.base_model
        self.names = list(inspect.signature(backbone.forward).parameters)
        backbone.register_forward_pre_hook(self._before, with_kwargs=True)
        backbone.register_forward_hook(self._after)

    def embeddings(self) -> torch.Tensor:
        """(virtual tokens, width), float32: what the encoder makes; the width is that of all layers' keys and values for a prefix."""
        import torch

        # Called even where it is but a table: weights that are divided over processes are put together by a module's call.
        made: torch.Tensor = self.model.prompt_encoder(torch.arange(self.count, device=self.model.device)[None])[0]
        return made

    def _before(self, backbone: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        import torch

        self.in_front = False
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        ids, embeds, cache = given.get("input_ids"), given.get("inputs_embeds"), given.get("past_key_values")
        read: Any = embeds if ids is None else ids
        rows, length = read.shape[:2]
        device = self.model.device
        begun = cache.get_seq_length() if cache is not None else 0
        if (begun or self.count) + length > self.context:
            raise InputError(
                f"a row of {length} tokens and {self.count} virtual tokens are more than the model's context of {self.context}; "
                f"set train.max_length to {self.context - self.count} or less"
            )
        mask = given.get("attention_mask")
        if mask is not None:
            if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
                raise InputError("prompt learning needs an attention mask of the form (rows, tokens); generate with the default cache")
            given["attention_mask"] = torch.cat([mask.new_ones(rows, self.count), mask], dim=1)
        positions = given.get("position_ids")
        if positions is not None:
            given["position_ids"] = positions = positions + self.count
        if begun:
            return (), given
        learned = self.embeddings()
        if self.config.peft_type == "PREFIX_TUNING":
            given["past_key_values"] = self._filled(cache, learned, rows)
            return (), given
        if embeds is None:
            embeds = self.model.get_input_embeddings()(ids)
        given["input_ids"] = None
        given["inputs_embeds"] = torch.cat([learned.to(embeds.dtype).expand(rows, -1, -1), embeds], dim=1)
        if positions is not None:
            ahead = torch.arange(self.count, device=device, dtype=positions.dtype).expand(*positions.shape[:-1], -1)
            given["position_ids"] = torch.cat([ahead, positions], dim=-1)
        if given.get("token_type_ids") is not None:
            kinds = given["token_type_ids"]
            given["token_type_ids"] = torch.cat([kinds.new_zeros(rows, self.count), kinds], dim=1)
        self.in_front = True
        return (), given

    def _filled(self, cache: Any, learned: torch.Tensor, rows: int) -> Any:
        """The cache, a new one if there is none, with every layer's learned keys and values in it."""
        from transformers import DynamicCache

        if self.model.training and self.model.is_gradient_checkpointing:
            raise InputError(
                "prefix tuning learns through the attention's cache, which gradient checkpointing turns off; "
                "set train.gradient_checkpointing to false"
            )
        config = self.config
        cache = DynamicCache(config=self.model.config.get_text_config()) if cache is None else cache
        heads = config.num_attention_heads
        # As PEFT lays it out: (tokens, layers · 2, heads, width of a head), keys before values.
        parts = learned.to(self.model.dtype).view(self.count, config.num_layers * 2, heads, config.token_dim // heads).permute(1, 2, 0, 3)
        for layer in range(config.num_layers):
            key, value = (parts[2 * layer + i].expand(rows, -1, -1, -1) for i in (0, 1))
            cache.update(key, value, layer)
        return cache

    def _after(self, backbone: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if self.in_front:
            output.last_hidden_state = output.last_hidden_state[:, self.count :]
            self.in_front = False
        return output


def _fill(config: Any, model: PreTrainedModel) -> Any:
    """What PEFT reads from a model's configuration: sizes, and for a prefix those of its keys and values."""
    text: Any = model.config.get_text_config()
    config.task_type = task_type(model)
    config.num_transformer_submodules = 1
    config.num_layers = text.num_hidden_layers
    config.token_dim, config.num_attention_heads = text.hidden_size, text.num_attention_heads
    if config.peft_type == "PREFIX_TUNING":
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        config.token_dim, config.num_attention_heads = heads * width, heads
    if getattr(config, "encoder_hidden_size", 0) is None:
        config.encoder_hidden_size = config.token_dim
    return config


def _encoded(encoder: torch.nn.Module, config: Any) -> torch.Tensor:
    """(virtual tokens, width) on the CPU: what the encoder makes for use, without its dropout. Changes no random state."""
    import torch
    from peft import PEFT_TYPE_TO_TUNER_MAPPING

    state = {name: t.detach().cpu() for name, t in encoder.state_dict().items()}
    if _is_table(encoder):
        return state["embedding.weight"].clone()
    # By an encoder of its own: the model's may have hooks that want weights divided over processes, and here they are whole.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        own = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](config).eval()
        own.load_state_dict(state)
        made: torch.Tensor = own(torch.arange(config.num_virtual_tokens)[None])[0]
    return made


def _is_table(encoder: torch.nn.Module) -> bool:
    """Whether the virtual tokens are themselves what is learned."""
    return [name for name, _ in encoder.named_parameters()] == ["embedding.weight"]


def _heads(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A task's head, by PEFT's keys for a model whose layers are its own."""
    return {f"base_model.{name}.{part}": p for name in head_modules(model) for part, p in model.get_submodule(name).named_parameters()}
