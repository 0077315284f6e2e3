"""PEFT's methods that put layers of their own into a model: one adapter from PEFT's classes to the `Method` protocol.

A method's file gives its PEFT configuration; here the layers are put in place, and what they learn is written and read. The layers are
PEFT's own, so training computes what PEFT computes. The files are PEFT's format: `adapter_config.json` and `adapter_model.safetensors`,
whose keys are the parameters' names with `base_model.model.` in front and the adapter's name (`default`) taken out.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunery.errors import InputError
from tunery.methods._low_rank import target_names
from tunery.models.heads import head_modules

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "default"
"""PEFT's own name for the only adapter of a model."""
Targets = Annotated[
    Literal["all-linear"] | tuple[str, ...],
    Field(description="layers to adapt; all linear layers but the head, as for LoRA, so that methods can be compared"),
]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Injected:
    """The functions of the `Method` protocol for one of PEFT's methods.

    kind: PEFT's `peft_type`. config: (model, options, seed) → the PEFT configuration. same: the options, with their names in PEFT's
    configuration, that a run to start from must share. shared: tensors of the model, by their key in the file, that are saved beside
    what is learned.
    """

    kind: str
    config: Callable[[PreTrainedModel, Any, int], Any]
    same: Mapping[str, str]
    shared: Callable[[PreTrainedModel], dict[str, torch.Tensor]] | None = None

    def attach(self, model: PreTrainedModel, options: Any, seed: int) -> PreTrainedModel:
        """Put the method's layers into `model`; only they, and a task's head, learn. Starting values depend on `seed` alone."""
        import torch
        from peft import PEFT_TYPE_TO_TUNER_MAPPING
        from peft.tuners.tuners_utils import cast_adapter_dtype

        from tunery.methods._heads import train_heads

        model.requires_grad_(False)
        with torch.random.fork_rng(devices=[]), quiet_peft():
            torch.manual_seed(seed)  # PEFT draws on the CPU
            config = self.config(model, options, seed)
            config.task_type = task_type(model)
            config.modules_to_save = None  # the head is trained in place; the saved file names it
            try:
                PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, config, NAME)
            except ValueError as e:  # a size that a layer of this model does not allow
                raise InputError(f"method: these settings do not fit this model ({str(e).splitlines()[0]}); change them") from None
            cast_adapter_dtype(model, NAME)  # float32 on a base of any type: a step of 1e-4 on a weight of 0.1 is lost in bfloat16
        train_heads(model)
        return model

    def save(self, model: PreTrainedModel, options: Any, folder: Path, base: str) -> None:
        """Write PEFT's two files into `folder`."""
        write(folder, _config(model), self._tensors(model), model, base)

    def check_start(self, folder: Path, options: Any) -> None:
        """See `Method.check_start`: the adapter must be of this method, and of the same shape and scale."""
        check_config(folder, self.kind, options, self.same)

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Read what `save` or PEFT wrote. Raises InputError naming the first tensor that is missing, unknown or of another shape."""
        read_into(self._tensors(model), folder)

    def _tensors(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        learned: dict[str, torch.Tensor] = {
            "base_model.model." + re.sub(rf"\.{NAME}(?=\.|$)", "", name): p for name, p in model.named_parameters() if p.requires_grad
        }
        return learned | (self.shared(model) if self.shared else {})


def _config(model: PreTrainedModel) -> Any:
    found: Any = model.peft_config
    return found[NAME]


# What prompt learning (`_peft_virtual.py`) does in the same way


def write(folder: Path, config: Any, tensors: Mapping[str, torch.Tensor], model: PreTrainedModel, base: str) -> None:
    """PEFT's two files: `config` for use (`inference_mode`) and naming `base`, and the tensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    saved = copy.copy(config)
    saved.base_model_name_or_path, saved.inference_mode, saved.modules_to_save = base, True, _kept_whole(model) or None
    for key, value in vars(saved).items():
        if isinstance(value, set):
            setattr(saved, key, sorted(value))  # a set of strings has another order in each process
    saved.save_pretrained(str(folder))
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    save_file(plain, str(folder / WEIGHTS), metadata={"format": "pt"})


def _kept_whole(model: PreTrainedModel) -> list[str]:
    """A head's modules as `modules_to_save` names them.

    PEFT takes `classifier` and `score` as a whole in any case. Of other modules it merges only such as have a weight of their own
    (`BaseTuner._replace_module` in 0.21 reads it), so a pooling layer is named by the linear layer inside it.
    """
    names: list[str] = []
    for head in head_modules(model):
        if head.rpartition(".")[2] in ("classifier", "score"):
            names.append(head)
            continue
        for inner, module in model.get_submodule(head).named_modules(prefix=head):
            if any(True for _ in module.parameters(recurse=False)):
                names.append(inner)
    return names


def read_into(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Copy the tensors of the file in `folder` into those of the same keys. Raises InputError when one does not fit."""
    import torch

    stored = read(folder)
    for key, own in tensors.items():
        value = stored.pop(key, None)
        if value is None or value.shape != own.shape:
            have = "not there" if value is None else f"{tuple(value.shape)}"
            name = key.removeprefix("base_model.model.")
            raise InputError(
                f"{folder / WEIGHTS}: {name} should be {tuple(own.shape)} and is {have}; the method's options or the base differ"
            )
        with torch.no_grad():
            own.copy_(value)
    if stored:
        raise InputError(
            f"{folder / WEIGHTS}: holds {next(iter(stored))}, which this recipe does not train; the targets or the task differ"
        )


def read(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the adapter in `folder`. Raises InputError when there is none."""
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    if not file.is_file():
        raise InputError(f"{folder}: there is no adapter here ({WEIGHTS} is missing); name a run or an adapter folder")
    return load_file(str(file))


def check_config(folder: Path, kind: str, options: Any, same: Mapping[str, str]) -> dict[str, Any]:
    """The configuration in `folder`. Raises InputError when it is of another method, or differs in an option that must be the same."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"train.init_from: there is no adapter in {folder} (no readable {CONFIG}); name a run or an adapter folder"
        ) from None
    if config.get("peft_type") != kind:
        raise InputError(
            f"train.init_from: the adapter in {folder} is of another method ({config.get('peft_type')}, not {kind}); "
            "name a run of the recipe's method, or change the method"
        )
    for option, key in same.items():
        own, theirs = getattr(options, option), config.get(key)
        if own != theirs:
            raise InputError(
                f"train.init_from: the adapter in {folder} has {option} {theirs} and the recipe {own}; set method.{option} to {theirs}"
            )
    return config


def task_type(model: PreTrainedModel) -> str:
    """PEFT's name for what the model is for, by which `peft.PeftModel` chooses its class."""
    if not head_modules(model):
        return "CAUSAL_LM"
    return "TOKEN_CLS" if type(model).__name__.endswith("ForTokenClassification") else "SEQ_CLS"


def linear_targets(model: PreTrainedModel, targets: Literal["all-linear"] | tuple[str, ...]) -> list[str]:
    """The linear layers to adapt, as LoRA chooses them, by names that mean exactly them."""
    return short_names(model, target_names(model, targets))


def short_names(model: PreTrainedModel, chosen: Iterable[str]) -> list[str]:
    """The last parts of the names where they mean exactly the chosen modules, else the full names."""
    full = set(chosen)
    leaves = {n.rpartition(".")[2] for n in full}
    meant = {n for n, _ in model.named_modules() if n.rpartition(".")[2] in leaves}
    return sorted(leaves if meant == full else full)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without PEFT's notices: what they say (a block size that was adjusted, a method's limits) is in the method's own file."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
