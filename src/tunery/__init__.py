"""Tunery fine-tunes small language models and hands back something measured, exported and served.

import tunery
result = tunery.finetune("recipe.yaml")
result.report["evaluation"]["after"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Recipe", "__version__", "finetune", "resume"]

if TYPE_CHECKING:
    from tunery.pipeline import finetune as finetune
    from tunery.pipeline import resume as resume
    from tunery.recipe import Recipe as Recipe


def __getattr__(name: str) -> Any:
    """`import tunery` stays instant: the engine is imported when one of its names is first used."""
    if name in ("finetune", "resume"):
        from tunery import pipeline

        return getattr(pipeline, name)
    if name == "Recipe":
        from tunery.recipe import Recipe

        return Recipe
    raise AttributeError(f"module 'tunery' has no attribute {name!r}")
