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
    from tunery.cli.label_loop import label_loop, spoken
    from tunery.data.render import Renderer
    from tunery.errors import InputError
    from tunery.infer.classifier import open_classifier
    from tunery.infer.open_engine import ENGINES, open_engine, words_renderer
    from tunery.infer.sampling import Sampling

    if json and message is None:
        raise InputError("--json answers one message: give it with -m")
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, max_new_tokens=max_new_tokens)
    if engine not in ENGINES:
        raise InputError(f"engine `{engine}` is not known; choose {' or '.join(ENGINES)}")
    classifier = open_classifier(run, engine, console().print)
    if classifier is not None:
        if system is not None:
            raise InputError("a model with a head is asked nothing, so it takes no system prompt; leave --system out")
        if message is None:
            label_loop(lambda text: spoken(classifier.answer(text)), console())
            return
        found = classifier.answer(message)
        if json:
            emit({"message": message, "answer": spoken(found), **found, "engine": classifier.engine.name})
        else:
            sys.stdout.write(spoken(found) + "\n")
        return
    opened = open_engine(run, engine, console().print)
    in_words = words_renderer(run, opened.tokenizer)
    if in_words is not None:
        if system is not None:
            raise InputError("this model was trained to answer the prompt in its recipe, without a system prompt; leave --system out")

        def ask(text: str) -> str:
            (ids,) = opened.generate([in_words.asked(text)], sampling)
            return str(opened.tokenizer.decode(ids, skip_special_tokens=True)).strip()

        if message is None:
            label_loop(ask, console())
        elif json:
            emit({"message": message, "answer": ask(message), "engine": opened.name})
        else:
            sys.stdout.write(ask(message) + "\n")
        return
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
