"""VeRA: one pair of random matrices shared by all layers and never trained; each layer learns two vectors that scale their rows.

    ΔW = diag(b) B diag(d) A      A: (rank, in) and B: (out, rank) random and shared, d: (rank,), b: (out,) learned

Kopiczko et al. 2024, "VeRA: Vector-based Random Matrix Adaptation". The random matrices depend on the seed and are saved with the
vectors, since another version of torch may draw others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunery.methods._peft import Injected, Targets, linear_targets
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SUMMARY = "two learned vectors a layer around random matrices that all layers share: a tenth of LoRA's numbers"
LEARNING_RATE = (4e-3, "vectors around random matrices move slowly: on SmolLM2-135M it was steady, and still slower than LoRA at 2e-4")
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = True, False, True


class Options(_Options):
    """VeRA's settings in a recipe."""

    rank: Annotated[
        int,
        Field(gt=0, description="the rank of the shared random matrices; the paper's choice for large models and PEFT's default"),
    ] = 256
    d_initial: Annotated[float, Field(description="what each value of d begins with; the paper's choice")] = 0.1
    dropout: Annotated[float, Field(ge=0, lt=1, description="of the adapter's input; 0 lets rows share what they begin with")] = 0.0
    targets: Targets = "all-linear"


def _config(model: PreTrainedModel, options: Options, seed: int) -> Any:
    from peft import VeraConfig

    return VeraConfig(
        r=options.rank,
        d_initial=options.d_initial,
        vera_dropout=options.dropout,
        projection_prng_key=seed,
        save_projection=True,
        target_modules=linear_targets(model, options.targets),
    )


def _projections(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The shared matrices, by PEFT's keys: every layer refers to the same two."""
    layer: Any = next(m for m in model.modules() if hasattr(m, "vera_A"))
    return {"base_model.vera_A": layer.vera_A["default"], "base_model.vera_B": layer.vera_B["default"]}


_method = Injected("VERA", _config, {"rank": "r"}, _projections)
attach, save, check_start, load = _method.attach, _method.save, _method.check_start, _method.load
