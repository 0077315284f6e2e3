"""AdaLoRA: LoRA as P Λ Q, whose singular values are cut where they matter least, so that ranks go to the layers that need them.

    y = x Wᵀ + alpha / init_rank · ((x Qᵀ) ∘ λ) Pᵀ       Q: (init_rank, in), λ: (init_rank,), P: (out, init_rank)

Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning". All layers begin with `init_rank`; after
`tinit` of the steps the singular values that matter least to the loss are set to zero, more each step, until on average `rank` a layer
are left; for the last `tfinal` of the steps it is settled which. P and Q are kept near orthogonal by a term in the loss.

The matrices are saved whole, with zeros for what was cut: PEFT computes the same with them, and training can go on from them bit for bit,
which needs the moving averages of `allocation.safetensors` too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from tunery.methods._peft import NAME, Injected, Targets, linear_targets
from tunery.recipe import Options as _Options
from tunery.refusal import Refusal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SUMMARY = "LoRA whose ranks move during training to the layers that need them"
LEARNING_RATE = (
    2e-3,
    "near the highest of the paper's rates, since the change begins at zero: SmolLM2-135M fell nearly as fast as by LoRA at 2e-4",
)
SAVES: Literal["adapter", "weights"] = "adapter"
MERGES, TRAINS_BASE, PACKS = True, False, True
REFUSES = (
    Refusal(
        when={"sharding": ("zero1", "zero2", "zero3", "fsdp")},
        reason="AdaLoRA weighs each value by its whole gradient after every step, and here a process holds a part of it only",
        source="https://huggingface.co/docs/peft/package_reference/adalora (update_and_allocate)",
        instead="sharding: ddp",
    ),
)
STATE = "allocation.safetensors"


class Options(_Options):
    """AdaLoRA's settings in a recipe."""

    rank: Annotated[int, Field(gt=0, description="the rank that a layer keeps on average; PEFT's and the paper's most common choice")] = 8
    init_rank: Annotated[
        int, Field(gt=1, description="the rank that every layer begins with; one and a half times the rank, as in the paper")
    ] = 12
    alpha: Annotated[float, Field(gt=0, description="alpha / init_rank scales what is added; 32, as for LoRA")] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="of the adapter's input; 0 lets rows share what they begin with")] = 0.0
    tinit: Annotated[
        float, Field(ge=0, lt=1, description="share of the steps before anything is cut; about the paper's for its larger tasks")
    ] = 0.1
    tfinal: Annotated[
        float, Field(ge=0, lt=1, description="share of the steps after the last cut; about the paper's for its larger tasks")
    ] = 0.5
    delta_t: Annotated[int, Field(gt=0, description="steps from one cut to the next; 1, since a cut costs little beside a step")] = 1
    beta1: Annotated[float, Field(gt=0, lt=1, description="memory of a value's importance; the paper's choice")] = 0.85
    beta2: Annotated[float, Field(gt=0, lt=1, description="memory of the importance's uncertainty; the paper's choice")] = 0.85
    orth_reg_weight: Annotated[float, Field(ge=0, description="weight of the term that keeps P and Q orthogonal; PEFT's default")] = 0.5
    targets: Targets = "all-linear"

    @model_validator(mode="after")
    def _room(self) -> Options:
        if self.init_rank <= self.rank:
            raise ValueError("init_rank must be greater than rank: the difference is what is cut")
        if self.tinit + self.tfinal >= 1:
            raise ValueError("tinit and tfinal are shares of the steps, and together they must leave some for cutting: lower one")
        return self


def attach(model: PreTrainedModel, options: Options, seed: int) -> PreTrainedModel:
    """Put P, Λ and Q beside every target; only they, and a task's head, learn."""
    from peft.tuners.adalora.layer import RankAllocator

    whole: Any = _method.attach(model, options, seed)
    for name, p in whole.named_parameters():
        if ".ranknum." in name:
            p.requires_grad_(False)  # a constant, which PEFT makes learn when it moves it to a bfloat16 base
    whole.rank_allocator = RankAllocator(whole, whole.peft_config[NAME], NAME)
    return model


def extra_loss(model: PreTrainedModel, options: Options) -> torch.Tensor | None:
    """What a step's mean loss has added to it: `orth_reg_weight` times the mean of ‖PᵀP − I‖ and ‖QQᵀ − I‖ over all layers."""
    import torch

    if not options.orth_reg_weight:
        return None
    norms = []
    for name, p in model.named_parameters():
        if f".lora_A.{NAME}" in name or f".lora_B.{NAME}" in name:
            product = p @ p.T if ".lora_A." in name else p.T @ p
            norms.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=p.device)))
    return options.orth_reg_weight * torch.stack(norms).mean()


def after_step(model: PreTrainedModel, options: Options, step: int, steps: int) -> None:
    """Weigh every value and cut what matters least. To be called after step `step` (from 1) of `steps`, while its gradients are there."""
    whole: Any = model
    config, allocator = whole.peft_config[NAME], whole.rank_allocator
    config.total_step, config.tinit, config.tfinal = steps, int(options.tinit * steps), int(options.tfinal * steps)
    last = steps - config.tfinal
    if step < last:
        pattern = allocator.update_and_allocate(model, step)[1]
        config.rank_pattern = pattern or config.rank_pattern
    elif step == last and allocator.exp_avg_ipt:  # a run of a step or two keeps all its ranks: nothing was weighed
        config.rank_pattern = allocator.update_and_allocate(model, step, force_mask=True)[1]
        allocator.reset_ipt()
    elif step > last and config.rank_pattern:
        allocator.mask_using_rank_pattern(model, config.rank_pattern)


def save(model: PreTrainedModel, options: Options, folder: Path, base: str) -> None:
    """PEFT's two files, and what the next cuts depend on."""
    import torch
    from safetensors.torch import save_file

    whole: Any = model
    config, allocator = whole.peft_config[NAME], whole.rank_allocator
    pattern, config.rank_pattern = config.rank_pattern, None  # it would tell PEFT that the cut rows are not in the file
    try:
        _method.save(model, options, folder, base)
    finally:
        config.rank_pattern = pattern
    state = {f"kept/{name}": torch.tensor(kept) for name, kept in (pattern or {}).items()}
    for part in ("exp_avg_ipt", "exp_avg_unc"):
        state |= {f"{part}/{name}": t.cpu().contiguous() for name, t in getattr(allocator, part).items()}
    save_file(state, str(folder / STATE), metadata={"format": "pt"})


def load(model: PreTrainedModel, folder: Path) -> None:
    """Read what `save` wrote. An adapter that PEFT saved is read where nothing was cut from its matrices."""
    from safetensors.torch import load_file

    _method.load(model, folder)
    whole: Any = model
    config, allocator = whole.peft_config[NAME], whole.rank_allocator
    allocator.reset_ipt()
    config.rank_pattern = None
    if not (folder / STATE).is_file():
        return
    device = model.device
    for key, value in load_file(str(folder / STATE)).items():
        part, _, name = key.partition("/")
        if part == "kept":
            config.rank_pattern = {**(config.rank_pattern or {}), name: value.tolist()}
        else:
            getattr(allocator, part)[name] = value.to(device)
    allocator.ipt = dict(allocator.exp_avg_ipt)  # its keys say which averages there are; its values are written before they are read


def _config(model: PreTrainedModel, options: Options, seed: int) -> Any:
    from peft import AdaLoraConfig

    return AdaLoraConfig(
        target_r=options.rank,
        init_r=options.init_rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        deltaT=options.delta_t,
        beta1=options.beta1,
        beta2=options.beta2,
        orth_reg_weight=options.orth_reg_weight,
        total_step=1,  # PEFT wants one here; `after_step` knows it
        target_modules=linear_targets(model, options.targets),
    )


_method = Injected("ADALORA", _config, {"rank": "target_r", "init_rank": "init_r", "alpha": "lora_alpha"})
check_start = _method.check_start
