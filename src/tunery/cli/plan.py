"""`tunery plan RECIPE`: memory, time and cost of every method and sharding, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunery.cli.common import console, emit


def plan(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key of the recipe: train.epochs=1")] = None,
    on: Annotated[str | None, typer.Option(help="Named hardware in place of this machine: a100-80gb, h100, l4, rtx-4090 …")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="How many processes share the work; with --on, each has a device.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of an hour of one device.")] = None,
    watts: Annotated[float | None, typer.Option(min=0, help="Power that one device draws, for the energy.")] = None,
    fit: Annotated[str | None, typer.Option(help="Find settings that fit into this memory: 2GB")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure this machine anew.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Plan a training: what each method takes in memory, time and money, and which to choose. Nothing is trained."""
    from dataclasses import replace

    from tunery.cli.plan_view import show, show_fit
    from tunery.inputs import absolute
    from tunery.launch.work import prepare_data
    from tunery.models.load import load_tokenizer
    from tunery.plan import calibration
    from tunery.plan.absent import find_absent
    from tunery.plan.fit import fit as find_fit
    from tunery.plan.fit import size
    from tunery.plan.hardware import hardware
    from tunery.plan.whole import Plan, make, with_settings
    from tunery.progress import Lines
    from tunery.recipe import read
    from tunery.resolve import resolve, with_labels

    device, limit = hardware(on) if on else None, size(fit) if fit else None
    progress = Lines()
    base = recipe.resolve().parent
    written = absolute(read(recipe, set_ or ()), base)
    absent = find_absent(written, progress.say)
    resolved = resolve(absent.recipe if absent else written, progress, str(recipe), folder=absent.folder if absent else None)
    resolved = with_labels(resolved, base)
    renderer = resolved.renderer(load_tokenizer(absent.tokenizer if absent else resolved.folder))
    prepared = prepare_data(resolved, renderer, base, progress)
    if limit is None:
        made = make(resolved, prepared, absent, device, processes, price, watts, again=calibrate)
        if json:
            emit(made.as_json())
        else:
            show(made, console())
        return

    if calibrate and device is None and resolved.device == "cpu":
        calibration.rates(again=True)  # once; every plan that follows reads it

    def planned(methods: tuple[str, ...], checkpointing: bool, length: int) -> Plan:
        changed = with_settings(resolved, gradient_checkpointing=checkpointing, max_length=length)
        rows = prepared if length == resolved.recipe.train.max_length else prepare_data(changed, renderer, base, progress)
        changed = replace(changed, reasons=resolved.reasons)
        return make(changed, rows, absent, device, processes, price, watts, only=methods)

    assert resolved.recipe.train.max_length is not None
    found = find_fit(limit, resolved.recipe.method.name, resolved.recipe.train.max_length, planned)
    if json:
        emit(
            {
                "limit_bytes": limit,
                "fitting": [
                    {"lines": list(f.lines), "peak_memory_bytes": f.candidate.memory.total_bytes, "seconds": round(f.candidate.seconds, 3)}
                    for f in found
                ],
            }
        )
    else:
        show_fit(limit, found, console())
    if not found:
        raise typer.Exit(1)
