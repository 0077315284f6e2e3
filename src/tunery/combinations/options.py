"""What a part's options mean and why their defaults are what they are: read from where they are declared, so that it cannot drift."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from tunery.recipe import Options


def described(options: type[Options]) -> list[dict[str, Any]]:
    """`name`, `default` and `description` of each option, as a recipe writes them; no description is an empty one."""
    texts = _docstrings(options)
    return [
        {
            "name": name,
            "default": "required" if field.is_required() else _plain(field.get_default(call_default_factory=True)),
            "description": " ".join((field.description or texts.get(name, "")).split()),
        }
        for name, field in options.model_fields.items()
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _docstrings(options: type[Options]) -> dict[str, str]:
    """The string that stands below each field in the source, of the class and of those that it builds on."""
    found: dict[str, str] = {}
    for cls in reversed(options.__mro__):
        if not (issubclass(cls, Options) and cls is not Options):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        except OSError:  # made by a program, so it stands in no file: `Field(description=...)` is its way
            continue
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)):
                continue
            if isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
                found[field.target.id] = text.value.value
    return found
