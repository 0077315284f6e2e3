"""From what a user names (a run, a model folder, a model's name) to an engine that answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery import methods, tasks
from tunery.data.render import Renderer
from tunery.errors import InputError
from tunery.infer.engine import Engine
from tunery.infer.onnx_engine import OnnxEngine
from tunery.infer.torch_engine import TorchEngine
from tunery.models.heads import Head
from tunery.models.load import load_model, load_tokenizer
from tunery.models.source import local_folder
from tunery.recipe import Recipe
from tunery.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ENGINES = ("torch", "onnx")


def open_engine(name: str, engine: str, say: Callable[[str], Any] | None = None) -> Engine:
    """The engine `torch` or `onnx` for a run directory, a model folder, or anything that names a model.

    Raises InputError for an unknown engine, an unfinished run, or a run without the export that the engine needs.
    """
    if engine not in ENGINES:
        raise InputError(f"engine `{engine}` is not known; choose {' or '.join(ENGINES)}")
    path = Path(name)
    run = Run.open(path) if (path / "recipe.yaml").is_file() else None
    if engine == "onnx":
        folder = run.path / "onnx" if run else path
        if run and not folder.is_dir():
            raise InputError(f"{name}: this run was not exported to ONNX; do it with `tunery export {name} --to onnx --out {folder}`")
        return OnnxEngine(folder)
    if run is None and (path / "genai_config.json").is_file():
        raise InputError(f"{name}: this folder holds an ONNX model; talk to it with --engine onnx")
    if run is not None:
        model, tokenizer = load_run(run, progress=say)
    else:
        local = local_folder(name, say)
        model, tokenizer = load_model(local, _quick_dtype()), load_tokenizer(local)
    return TorchEngine(model, tokenizer, Renderer(tokenizer).stop_ids)


def words_renderer(name: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """How a run asks for a label in words (`asked(text)` gives the ids), or None for what is not such a run."""
    if not (Path(name) / "recipe.yaml").is_file():
        return None
    task, options = tasks.of(Run.open(name).recipe().task)
    renderer = task.renderer(tokenizer, options)
    return renderer if hasattr(renderer, "asked") else None


def load_run(
    run: Run, with_adapter: bool = True, dtype: str | None = None, progress: Callable[[str], Any] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model of a run with what it learned (or its base alone), in the run's own precision unless told otherwise, and its tokenizer."""
    recipe = run.recipe()
    if with_adapter and not run.learned.is_dir():
        raise InputError(f"{run.path}: this run has not finished training; go on with `tunery resume {run.path}`")
    folder = local_folder(recipe.model, progress)
    own = {"bf16": "bfloat16", "fp32": "float32"}[recipe.train.precision]
    precision = dtype or own
    model = load_base(recipe, folder, precision)
    if with_adapter:
        method = methods.get(recipe.method.name)
        options = method.Options.model_validate(recipe.method.options)
        options = method.for_use(options) if hasattr(method, "for_use") else options
        rounded = {"quantise_from": own} if getattr(method, "QUANTISES", False) else {}
        model = method.attach(model, options, recipe.train.seed, **rounded)
        method.load(model, run.learned)
        if method.TRAINS_BASE:
            import torch

            model = model.to(getattr(torch, precision))
    return model.eval(), load_tokenizer(folder)


def load_base(recipe: Recipe, folder: Path, dtype: str, device: str = "cpu") -> PreTrainedModel:
    """The model that a resolved recipe starts from: under the task's head where it has one, with the attention that its rows need.

    A method that trains the base gets it in float32, whatever `dtype` is: rounded first, it would begin elsewhere.
    """
    from tunery.kernels.fused import fuse
    from tunery.train import attention

    dtype = "float32" if methods.get(recipe.method.name).TRAINS_BASE else dtype
    task, options = tasks.of(recipe.task)
    if task.FORM in ("sequence", "token"):
        return fuse(load_model(folder, dtype, device, head=Head(task.FORM, tuple(options.labels)), seed=recipe.train.seed))
    return fuse(load_model(folder, dtype, device, attention=attention.register()))


def _quick_dtype() -> str:
    from tunery.train import precision

    return precision.choose("auto", "cpu")[0]
