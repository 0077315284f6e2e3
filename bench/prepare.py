"""What both sides of the benchmark are given, so that they do the same work: rows of token ids, and an adapter to start from.

The rows are handed over tokenised: TRL's prompt and completion form also learns what ChatML writes after the end-of-turn token (a line
break), and the two sides would not learn the same tokens. What follows a row's last learned token is cut off.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RANK, ALPHA, SEED = 16, 32.0, 0
LENGTH = 512
"""Tokens of a row of dense text."""


def headlines(data: Path) -> Iterator[Any]:
    """The quickstart's chat rows, in the file's order."""
    from tunery.data.rows import read_rows

    return read_rows(str(data / "train.jsonl"))


TOOLS = [
    {
        "name": "file_under",
        "description": "Put a headline into a section of tomorrow's paper. Use it once for each headline.",
        "parameters": {"headline": "the headline as it was given", "section": "one of: news, satire"},
    },
    {
        "name": "ask_editor",
        "description": "Leave a question for the editor on duty. Only for headlines that could harm somebody if they were filed wrongly.",
        "parameters": {"headline": "the headline as it was given", "question": "one sentence", "urgent": "true or false"},
    },
    {
        "name": "search_archive",
        "description": "Look up what this paper has printed before. The newest articles come first; at most ten are returned.",
        "parameters": {"query": "a few words", "since": "a date, YYYY-MM-DD; may be left out", "section": "may be left out"},
    },
    {
        "name": "schedule",
        "description": "Say when a headline goes online. Not for satire, which is printed only.",
        "parameters": {"headline": "the headline as it was given", "at": "hour and minute, HH:MM", "front_page": "true or false"},
    },
]
SYSTEM = (
    "You work at the news desk of a daily paper. The user hands you headlines, one after another. Decide for each whether it reports something "
    "that happened or makes fun of something, and answer with one call of a tool, as JSON on a single line and without any other word. A "
    "headline is satire when what it says did not happen and is meant to amuse. A strange event that did happen is news. If a headline only "
    "sounds harsh, it is news. Do not correct the headline, do not shorten it, and never call two tools in one answer. These are the tools:\n"
    + json.dumps(TOOLS, indent=1)
)
TURNS = 3
"""Headlines of one chat."""


def chats(data: Path) -> Iterator[Any]:
    """The quickstart's headlines, `TURNS` to a conversation: a system prompt with tools, the same in every row, and calls as answers."""
    from tunery.data.rows import Row

    rows = list(headlines(data))
    for start in range(0, len(rows) - TURNS + 1, TURNS):
        messages = [{"role": "system", "content": SYSTEM}]
        for row in rows[start : start + TURNS]:
            asked, answer = row.value["messages"]
            headline = asked["content"].split("\n", 1)[1]
            arguments = {"headline": headline, "section": "satire" if answer["content"] == "1" else "news"}
            messages.append({"role": "user", "content": headline})
            messages.append({"role": "assistant", "content": json.dumps({"name": "file_under", "arguments": arguments})})
        weights = [float(message["role"] == "assistant") for message in messages]
        yield Row("chat", {"messages": messages, "weights": weights}, rows[start].source, rows[start].line)


def dense() -> Iterator[Any]:
    """Pieces of documentation and code that come with Python, in the order of their hashes."""
    from tunery.data.rows import Row
    from tunery.evaluate.probe_text import documents

    pieces = [piece for domain in ("documentation", "code") for piece in documents(domain)]
    pieces.sort(key=lambda piece: hashlib.sha256(piece.encode()).hexdigest())
    return (Row("text", {"text": piece}, "standard library", n) for n, piece in enumerate(pieces, 1))


def tokenised(workload: str, renderer: Any, data: Path, count: int) -> list[dict[str, list[int]]]:
    """`count` rows as `input_ids` and `completion_mask` (1 where the token is learned); dense rows have exactly `LENGTH` tokens."""
    rows: list[dict[str, list[int]]] = []
    for row in {"headlines": headlines, "chats": chats, "dense": lambda _: dense()}[workload](data):
        (sequence,) = renderer.sequences(row)
        if workload == "dense":
            if len(sequence.tokens) < LENGTH:
                continue
            sequence = sequence.cut(LENGTH)
        mask = [int(w > 0) for w in sequence.weights]
        end = len(mask) - mask[::-1].index(1)
        rows.append({"input_ids": sequence.tokens[:end].tolist(), "completion_mask": mask[:end]})
        if len(rows) == count:
            return rows
    raise SystemExit(f"{workload}: {count} rows are needed and there are {len(rows)}; lower --steps or --rows-per-step")


def start(model: Path, folder: Path) -> None:
    """The untrained adapter, in PEFT's format, that both sides load."""
    from tunery import methods
    from tunery.models.load import load_model

    method = methods.get("lora")
    options = method.Options.model_validate({"rank": RANK, "alpha": ALPHA})
    loaded = load_model(model, "bfloat16")
    method.attach(loaded, options, SEED)
    method.save(loaded, options, folder, str(model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", action="append", metavar="WORKLOAD=COUNT", required=True)
    args = parser.parse_args()

    from tunery.data.render import Renderer
    from tunery.models.load import load_tokenizer

    renderer = Renderer(load_tokenizer(args.model))
    for workload, count in (pair.split("=") for pair in args.rows):
        (args.out / f"{workload}.json").write_text(json.dumps(tokenised(workload, renderer, args.data, int(count))))
    start(args.model, args.out / "adapter")


if __name__ == "__main__":
    main()
