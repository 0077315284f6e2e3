"""What is known of the model that was trained: its published name, its licence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunery.models.catalogue import CATALOGUE, Entry, of_hub_id

LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "Llama 3.1 Community": "llama3.1",
    "Llama 3.2 Community": "llama3.2",
    "Gemma": "gemma",
}
"""The catalogue's names of licences as the hub's metadata writes them: https://huggingface.co/docs/hub/repositories-licenses."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Base:
    """`written`: what code loads it by; `hub_id`: None for a local folder or file; `licence`: the hub's name, None when not known;
    `rounded`: what was done to the published weights before training, empty for none."""

    written: str
    title: str
    hub_id: str | None
    licence: str | None
    rounded: str


def of(report: Mapping[str, Any]) -> Base:
    """The base model that a report names. Of a local folder only the last part is told: a card is often published."""
    name = str(report.get("model") or "")
    plain, _, _ = name.partition("@")
    entry: Entry | None = CATALOGUE.get(name.lower()) or of_hub_id(plain)
    if entry is not None and entry.hub_id is not None:
        rounded = entry.note if entry.note.startswith("dequantised") else ""
        return Base(entry.hub_id, entry.title, entry.hub_id, LICENCES.get(entry.licence), rounded)
    local = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if _HUB_ID.fullmatch(plain) and not name.startswith((".", "~")):
        return Base(plain, local, plain, None, "")
    return Base(local, local.removesuffix(".gguf"), None, None, "")
