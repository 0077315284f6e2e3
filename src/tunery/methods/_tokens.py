"""Training the rows of single tokens in the embedding and the output head, and leaving all other rows as they are.

The form is PEFT's `trainable_token_indices`: the rows' new values are stored, not their differences.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from tunery.errors import InputError
from tunery.models.load import load_tokenizer


class TokenEmbedding(nn.Module):
    """An embedding of which the rows of `ids` are learned, in float32."""

    slots: torch.Tensor

    def __init__(self, base: nn.Module, ids: list[int]) -> None:
        super().__init__()
        self.base = base
        self.ids = ids
        weight: Any = base.weight
        slots = torch.full((weight.shape[0],), -1, device=weight.device)
        slots[ids] = torch.arange(len(ids), device=weight.device)
        self.register_buffer("slots", slots, persistent=False)
        self.rows = nn.Parameter(weight[ids].detach().float().clone())

    @property
    def weight(self) -> torch.Tensor:
        """The frozen weight, for code that asks a layer for its type or device."""
        weight: torch.Tensor = self.base.weight
        return weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: (...) → (..., width)."""
        out = self.base(tokens)
        slots = self.slots[tokens]
        rows = F.embedding(slots.clamp_min(0), self.rows)
        scale = getattr(self.base, "embed_scale", None)  # Gemma's embedding multiplies what it reads
        if scale is not None:
            rows = rows * scale
        return torch.where((slots >= 0)[..., None], rows.to(out.dtype), out)


class TokenHead(nn.Module):
    """An output head of which the rows of `ids` are learned: its own, or those of the embedding that it is tied to."""

    index: torch.Tensor

    def __init__(self, base: nn.Linear, ids: list[int], tied: TokenEmbedding | None) -> None:
        super().__init__()
        self.base = base
        self.ids = ids
        self.tied = (tied,) if tied else ()  # in a tuple, so that it is not a submodule a second time
        self.register_buffer("index", torch.tensor(ids, device=base.weight.device), persistent=False)
        if tied is None:
            self.rows = nn.Parameter(base.weight[ids].detach().float().clone())

    @property
    def weight(self) -> torch.Tensor:
        """The frozen weight, for code that asks a layer for its type or device."""
        return self.base.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (..., width) → (..., vocabulary)."""
        rows = self.tied[0].rows if self.tied else self.rows
        bias = None if self.base.bias is None else self.base.bias[self.index]
        own = F.linear(hidden, rows.to(hidden.dtype), bias)
        logits: torch.Tensor = self.base(hidden).index_copy(-1, self.index, own)
        return logits


def train_tokens(model: Any, wanted: Literal["added"] | tuple[str, ...]) -> list[int]:
    """Make the rows of the wanted tokens trainable; their ids, in order. See `token_ids`."""
    if not wanted:
        return []
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    ids = token_ids(model, wanted, embedding.weight.shape[0])
    tied = head is not None and head.weight is embedding.weight
    new = TokenEmbedding(embedding, ids)
    _replace(model, embedding, new)
    if head is not None:
        _replace(model, head, TokenHead(head, ids, new if tied else None))
    return ids


def token_ids(model: Any, wanted: Literal["added"] | tuple[str, ...], rows: int) -> list[int]:
    """The ids of the named tokens, or of all tokens that were added to the tokenizer's own vocabulary.

    Raises InputError for a name that is not one token of the model's tokenizer, and for an id without a row in the embedding: an adapter
    for such a token would load on nobody else's copy of the base.
    """
    tokenizer = load_tokenizer(model.name_or_path)
    mend = "add it with tokenizer.add_tokens and model.resize_token_embeddings, save both in a folder, and name that as the model"
    if wanted == "added":
        found = {t: i for t, i in tokenizer.get_added_vocab().items() if i >= tokenizer.vocab_size}
        if not found:
            raise InputError(
                f"method.train_tokens: no token was added to the tokenizer of {model.name_or_path}; name the tokens, or {mend}"
            )
    else:
        known, found = tokenizer.get_vocab(), {}
        for token in wanted:
            ids = (
                [known[token]] if token in known else tokenizer.encode(token, add_special_tokens=False)
            )  # ` cat` is in the vocabulary as Ġcat
            if len(ids) != 1 or ids[0] == tokenizer.unk_token_id != known.get(token):
                raise InputError(f"method.train_tokens: `{token}` is not one token of the tokenizer of {model.name_or_path}; {mend}")
            found[token] = ids[0]
    beyond = [t for t, i in found.items() if i >= rows]
    if beyond:
        raise InputError(
            f"method.train_tokens: `{beyond[0]}` has no row in the model's embedding, which has {rows}; "
            "call model.resize_token_embeddings(len(tokenizer)), save the model, and name its folder"
        )
    return sorted(set(found.values()))


def token_layers(model: nn.Module) -> Iterator[tuple[str, TokenEmbedding | TokenHead]]:
    """The layers that hold learned rows of their own, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, TokenEmbedding) or (isinstance(module, TokenHead) and not module.tied):
            yield name, module


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    name = next(n for n, m in model.named_modules() if m is old)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
