"""A model that is not on this machine, planned all the same: by the shapes known here, or by what the hub says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunery.errors import InputError
from tunery.models import configs, hub, remote
from tunery.models.cache import Progress
from tunery.models.catalogue import CATALOGUE, of_hub_id
from tunery.models.kind import model_kind
from tunery.models.load import automatic_class, count_parameters
from tunery.models.source import find, local_folder
from tunery.recipe import Recipe

TOKENIZER = "smollm2-135m"
"""Whose tokenizer measures the rows where the model's own is not at hand."""
ALIKE = 1e-3
"""The share by which the number of values in the files may differ from what the shapes count before that is a warning."""


@dataclass(frozen=True)
class Absent:
    """What a plan takes in the model's place."""

    recipe: Recipe
    """The recipe to resolve."""
    config: Any
    """The model's transformers config."""
    kind: str
    """`decoder` or `encoder`."""
    folder: Path | None
    """Its config.json, where the hub gave it; None: context and checks are the stand-in's."""
    tokenizer: Path
    """The folder whose tokenizer measures the rows."""
    tokenizer_name: str | None
    """The model that it belongs to; None where it is the model's own."""
    remote: remote.Remote | None = None
    counted: int | None = None
    """Parameters by the config's shapes, to compare with what the files hold."""

    def sentences(self) -> list[str]:
        """What a reader of the plan has to know."""
        rows = (
            f"rows are as long as {self.tokenizer_name}'s tokenizer makes them" if self.tokenizer_name else "rows are its own tokenizer's"
        )
        if self.remote is None or self.counted is None:
            return [f"The model is not on this machine: its shapes are known, and {rows}."]
        said = f"The model is not on this machine: its shapes are by its config.json on the hub, and {rows}."
        held = self.remote.parameters
        types = ", ".join(f"{n:,} in {of}" for of, n in sorted(self.remote.values.items()))
        if abs(held - self.counted) <= ALIKE * self.counted:
            return [said, f"Its weight files hold {held:,} values ({types}), as its shapes count ({self.counted:,})."]
        return [
            said,
            f"Its weight files hold {held:,} values ({types}), but its shapes count {self.counted:,} parameters ({held / self.counted - 1:+.1%}): "
            "they may hold tied weights twice, parts that are not trained here, or quantised weights, so take the plan with care.",
        ]

    def as_json(self) -> dict[str, Any] | None:
        """What the hub says against what is counted; None where the hub was not asked."""
        if self.remote is None:
            return None
        return {
            "model": self.remote.hub_id,
            "file_bytes": self.remote.file_bytes,
            "file_values": dict(self.remote.values),
            "counted_parameters": self.counted,
        }


def find_absent(recipe: Recipe, progress: Progress | None = None) -> Absent | None:
    """None where the model is on this machine or is no model of the hub.

    Raises MissingModelError when the hub is needed and gives nothing, InputError for an architecture that transformers has not.
    """
    entry = CATALOGUE.get(recipe.model.lower()) or of_hub_id(recipe.model)
    if entry and entry.hub_id and not entry.package and configs.is_known(entry.name):
        if hub.cached(entry.hub_id, None) is not None:
            return None
        folder = local_folder(TOKENIZER, progress)
        config = configs.known_config(entry.name)
        config._name_or_path = str(folder)  # methods that take positions ask there for the context, which is the stand-in's
        # Its context and its refusals are the stand-in's; a longer `max_length` than that would be refused for no reason.
        return Absent(recipe.model_copy(update={"model": TOKENIZER}), config, "decoder", None, folder, TOKENIZER)
    source = find(recipe.model)
    if source.kind != "hub":
        return None
    hub_id, _, revision = (source.entry.hub_id if source.entry and source.entry.hub_id else source.name).partition("@")
    if hub.cached(hub_id, revision or None) is not None:
        return None
    found = remote.look(hub_id, revision or None, source.entry, progress)
    config, kind = _config(found), model_kind(found.folder)
    tokenizer = found.folder if found.tokenizer else local_folder(TOKENIZER, progress)
    stand_in = None if found.tokenizer else TOKENIZER
    return Absent(recipe, config, kind, found.folder, tokenizer, stand_in, found, _count(config, kind))


def _config(found: remote.Remote) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(found.folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError) as e:
        line = (str(e).strip().splitlines() or [e.__class__.__name__])[0][:200]
        raise InputError(
            f"the model {found.hub_id} cannot be planned: transformers cannot read its config.json ({line}); choose another"
        ) from None


def _count(config: Any, kind: str) -> int:
    """Parameters by the config's shapes, tied ones once; an encoder without a head."""
    import torch
    import transformers

    automatic = automatic_class(None) if kind == "decoder" else transformers.AutoModel
    with torch.device("meta"):
        return count_parameters(automatic.from_config(config))
