"""Rows that a classifier learns from: a text with one label, or words with a tag each.

    {"text": str, "label": str, "weight": number}          weight, above 0 and 1 unless given: how much the row counts in the loss
    {"tokens": [str, ...], "tags": [str, ...], "weight": number}

Whole numbers and true/false are labels too, by the way they are written; whether the labels are those of the task is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunery.data.json_rows import form
from tunery.data.messages import RowProblem, encodable

__all__ = ["JSON_KEYS", "KEYS", "MEANT", "labelled_text", "tagged_words"]

KEYS = frozenset({"text", "label", "tokens", "tags", "weight"})
JSON_KEYS = ("tokens", "tags")
"""Those that hold JSON in a CSV file."""

MEANT = {"class": "label", "category": "label", "sentiment": "label", "ner_tags": "tags", "labels": "tags", "words": "tokens"}
"""What other tools call the same thing."""


def labelled_text(raw: Mapping[str, Any]) -> dict[str, Any]:
    """{"text", "label", "weight"} of a row with `text` and `label`. Raises RowProblem."""
    text = raw["text"]
    if not isinstance(text, str):
        raise RowProblem(f"`text` must be text, this is {form(text)}; put it in quotes")
    if not text.strip():
        raise RowProblem("`text` is empty; write some text or remove the row")
    return {"text": encodable(text, "`text`"), "label": _name(raw["label"], "`label`"), "weight": _weight(raw.get("weight"))}


def tagged_words(raw: Mapping[str, Any]) -> dict[str, Any]:
    """{"tokens", "tags", "weight"} of a row with `tokens` and `tags`. Raises RowProblem when they are not lists of one length."""
    tokens, tags = raw["tokens"], raw["tags"]
    for key, value in (("tokens", tokens), ("tags", tags)):
        if not isinstance(value, list):
            raise RowProblem(f"`{key}` must be a list, this is {form(value)}; write one entry a word")
    if len(tokens) != len(tags):
        raise RowProblem(f"there are {len(tokens)} tokens and {len(tags)} tags; give each token one tag")
    if not tokens:
        raise RowProblem("`tokens` is empty; write some words or remove the row")
    words = []
    for number, token in enumerate(tokens, 1):
        if not isinstance(token, str):
            raise RowProblem(f"token {number} must be text, this is {form(token)}; put it in quotes")
        if not token or any(c.isspace() for c in token):
            what = "is empty" if not token else f"{token[:40]!r} holds white space"
            raise RowProblem(f"token {number} {what}; a token is one word, split it or remove it with its tag")
        words.append(encodable(token, f"token {number}"))
    names = [_name(tag, f"tag {number}") for number, tag in enumerate(tags, 1)]
    spaced = next((n for n, name in enumerate(names) if any(c.isspace() for c in name)), None)
    if spaced is not None:
        raise RowProblem(f"tag {spaced + 1} {names[spaced][:40]!r} holds white space; write it with a hyphen or an underscore")
    return {"tokens": words, "tags": names, "weight": _weight(raw.get("weight"))}


def _name(value: Any, what: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise RowProblem(f"{what} must be text or a whole number, this is {form(value)}; write the label's name")
    name = encodable(value, what).strip()
    if not name:
        raise RowProblem(f"{what} is empty; write the label or remove the row")
    return name


def _weight(value: Any) -> float:
    if value is None or value == "":
        return 1.0
    try:  # in a CSV file it is text
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise RowProblem(f"`weight` must be a number above 0, not {str(value)[:40]}; remove the row if it is not to be learned")
    return number
