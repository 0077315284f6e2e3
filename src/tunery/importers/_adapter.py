"""From PEFT's words to a recipe's method: `lora`, `dora`, `qlora` and what belongs to them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tunery.importers._reader import Reader

ALL = {"all", "all-linear", "all_linear"}
EIGHT_BIT = "no counterpart because a quantised base is 4-bit NF4 here (method: qlora); the base is kept whole"


@dataclass
class Lora:
    """What a file says about its adapter. Everything that is written goes into the recipe, so that no default of ours replaces theirs."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: str | list[str] | None = "all-linear"
    rslora: bool = False
    dora: bool = False
    four_bit: bool = False
    double: bool = True
    start: str = "default"
    loraplus_ratio: float | None = None

    def method(self) -> dict[str, Any]:
        """The recipe's `method`."""
        found: dict[str, Any] = {"name": "qlora" if self.four_bit else "dora" if self.dora else "lora", "rank": self.rank}
        found |= {"alpha": whole(self.alpha), "dropout": self.dropout, "targets": self.targets or "all-linear"}
        if self.rslora:
            found["rslora"] = True
        if self.four_bit and self.dora:
            found["dora"] = True
        if self.four_bit and not self.double:
            found["double_quantisation"] = False
        if self.start != "default":
            found["start"] = self.start
        if self.loraplus_ratio:
            found["loraplus_ratio"] = whole(self.loraplus_ratio)
        return found


def start(reader: Reader, key: str, lora: Lora) -> None:
    """PEFT's `init_lora_weights` into `lora.start`."""
    value = reader.take(key)
    if value in (None, True, "true"):
        return
    if str(value).startswith("pissa") and not lora.four_bit and not lora.dora:
        lora.start = "pissa"
    elif value == "loftq":
        lora.start, lora.four_bit = "loftq", True  # LoftQ's start is what quantising lost, so the base is quantised
    else:
        reader.leave(key, "no counterpart because an adapter begins by default, by PiSSA (method: lora) or by LoftQ (method: qlora)")


def loftq(reader: Reader, key: str, lora: Lora) -> None:
    """PEFT's `loftq_config`."""
    config = reader.inside(key)
    if not config.mapping:
        return
    lora.start, lora.four_bit = "loftq", True
    if config.integer("loftq_bits") not in (None, 4):
        config.leave("loftq_bits", EIGHT_BIT)
    if config.integer("loftq_iter") not in (None, 1):
        config.leave("loftq_iter", "no counterpart because LoftQ's start is computed in one pass here")


def whole(value: float) -> float | int:
    """16.0 as 16: what a person would write."""
    return int(value) if value == int(value) else value


def targets(reader: Reader, key: str, unnamed: str | None = None) -> str | list[str] | None:
    """The layers to adapt; None, with the reason left, when the file says it in a way that a recipe cannot.

    unnamed: what the tool does when the key is absent, for the note; None when it takes every linear layer as Tunery does.
    """
    if key not in reader:
        if unnamed:
            reader.note(f"method.targets: all-linear is Tunery's default; {unnamed}: name the layers to keep that")
        return "all-linear"
    value = reader.peek(key)
    listed = value.split(",") if isinstance(value, str) else value
    if isinstance(listed, list) and any(re.search(r"[\\^$*+?()\[\]{}|]", str(v)) for v in listed):
        reader.leave(key, "no counterpart because targets are names of layers here, not patterns; all-linear is written")
        return None
    found = reader.texts(key)
    return "all-linear" if set(found) & ALL or not found else found
