"""What training is, from a resolved recipe to what was learned in the run directory: in one process, or in each of several."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tunery import inputs, sharding
from tunery.data.prepare import Prepared, prepare
from tunery.models.cache import cache_folder
from tunery.models.load import count_parameters, load_tokenizer
from tunery.progress import Progress
from tunery.resolve import Resolved, learned_in, resolve
from tunery.run import Run, new_folder

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tunery.sharding._engine import Engine


def of_run(run: Run, resolved: Resolved) -> Resolved:
    """With the data that the run took along, and the reasons that its settings had when it began."""
    known = (run.read_json(inputs.FILE) or {}).get("reasons") or {}
    return replace(resolved, recipe=run.recipe(), reasons={**resolved.reasons, **known})


def prepare_data(resolved: Resolved, renderer: Any, base: Path, progress: Progress) -> Prepared:
    """The recipe's rows, tokenised now or earlier."""
    max_length = resolved.recipe.train.max_length
    assert max_length is not None  # resolving set it
    return prepare(
        resolved.recipe.data,
        renderer,
        max_length=max_length,
        context=resolved.context,
        seed=resolved.recipe.train.seed,
        base=base,
        cache=cache_folder(),
        kinds=resolved.task.ROWS,
        progress=lambda done, total, what: progress.show(what, done, total),
    )


def with_reference(run: Run, resolved: Resolved, prepared: Prepared, model: PreTrainedModel, progress: Progress) -> Prepared:
    """Preference pairs with how likely `model`, as it is now, finds their answers: it is the reference of what is learned.

    That is kept in the run, so a resumed run, and every process of a sharded one, reads it.
    """
    from tunery.train import learners

    learner: Any = learners.get(resolved.task, resolved.task_options, resolved.share_prefixes)
    train = learner.before_training(model, prepared.train, run, "train", progress)
    valid = None if prepared.valid is None else learner.before_training(model, prepared.valid, run, "valid", progress)
    return replace(prepared, train=train, valid=valid)


def train(
    run: Run,
    resolved: Resolved,
    prepared: Prepared,
    model: PreTrainedModel,
    tokenizer: Any,
    total: int,
    progress: Progress,
    engine: Engine | None = None,
) -> None:
    """Train a model that the method has prepared; what it learned and `training.json` are then in the run.

    total: the parameters of the base. engine: what the processes share; None: this one is alone.
    """
    from tunery.profile import record
    from tunery.sharding._engine import Engine as Alone
    from tunery.train import learners, loop
    from tunery.train.precision import peaks

    method = resolved.method
    engine = engine or Alone()
    learner = learners.get(resolved.task, resolved.task_options, resolved.share_prefixes)
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    watcher = None
    if record.wanted(run):
        from tunery.profile._watch import watching

        watcher = watching(run, model, engine, learner, method.TRAINS_BASE, resolved.dtype)
    with watcher or nullcontext():
        state = loop.train(
            run,
            model,
            method,
            resolved.options,
            learner,
            prepared.train,
            resolved.settings,
            progress,
            prepared.valid,
            resolved.recipe.model,
            engine,
            watcher,
        )
    own = peaks(resolved.device)
    memory = {name: int(value) for name, value in zip(own, engine.summed(*own.values()), strict=True)}
    if engine.rank > 0:
        return
    with new_folder(run.adapter if method.SAVES == "adapter" else run.weights) as folder:
        if resolved.recipe.sharding.name == "none":
            method.save(model, resolved.options, folder, resolved.recipe.model)
        else:  # the checkpoint holds the same, and the weights are divided
            kept = run.checkpoints / f"step-{loop.kept_step(state, resolved.settings)}" / "learned"
            shutil.copytree(kept, folder, dirs_exist_ok=True)
        tokenizer.save_pretrained(str(folder))
    run.write_json("training.json", {**asdict(state), "trainable_parameters": learned, "total_parameters": total, **memory})


def take_part(run: Run, progress: Progress) -> None:
    """Do this process's part of a run's training. The others call it too; RANK and WORLD_SIZE are in the environment."""
    import torch

    from tunery.infer.open_engine import load_base
    from tunery.sharding import _processes
    from tunery.train import checkpoint

    device = _processes.meet()
    resolved = of_run(run, resolve(run.recipe(), progress, str(run.recipe_file)))
    recipe, method = resolved.recipe, resolved.method
    stage, options = sharding.of(recipe.sharding)
    torch.manual_seed(recipe.train.seed)
    tokenizer = load_tokenizer(resolved.folder)
    prepared = prepare_data(resolved, resolved.renderer(tokenizer), run.path, progress)
    model = load_base(recipe, resolved.folder, resolved.dtype, str(device))
    total = count_parameters(model)
    if resolved.task.FORM == "pairs":
        prepared = with_reference(run, resolved, prepared, model, progress)  # measured before the processes began
    model = method.attach(model, resolved.options, recipe.train.seed)
    if recipe.train.init_from and checkpoint.newest(run.checkpoints) is None:
        method.load(model, learned_in(recipe.train.init_from))
    train(run, resolved, prepared, model, tokenizer, total, progress, stage.engine(options))
    _processes.part()
