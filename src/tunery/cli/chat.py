"""`tunery chat RUN`: talk to what was trained."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tunery.cli.common import console, emit


def chat(
    run: Annotated[str, typer.Argument(help="A run directory, an exported model folder, or a model's name.")],
    message: Annotated[str | None, typer.Option("-m", "--message", help="Answer this once and end.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt; the template's own unless given.")] = None,
    engine: Annotated[str, typer.Option(help="torch, or onnx for a run that was exported to ONNX.")] = "torch",
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens that hold this share.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from this many likeliest tokens; 0 from all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Draws with the same seed are the same.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 512,
    json: Annotated[bool, typer.Option("--json", help="With -m: one JSON object on standard output.")] = False,
) -> None:
    """Talk to a trained model, or have it answer one message."""
    from tunery.cli.chat_loop import answer_once, chat_loop
    from tunery.data.render import Renderer
    from tunery.errors import InputError
    from tunery.infer.open_engine import open_engine
    from tunery.infer.sampling import Sampling

    if json and message is None:
        raise InputError("--json answers one message: give it with -m")
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, max_new_tokens=max_new_tokens)
    opened = open_engine(run, engine, console().print)
    renderer = Renderer(opened.tokenizer)
    if message is None:
        chat_loop(opened, renderer, system, sampling, console())
        return
    pieces = []
    for piece in answer_once(opened, renderer, message, system, sampling):
        pieces.append(piece)
        if not json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if json:
        emit({"message": message, "answer": "".join(pieces), "engine": opened.name})
    else:
        sys.stdout.write("\n")
