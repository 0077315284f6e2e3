"""Fetch the headlines and write train.jsonl and test.jsonl beside the recipe.

    python examples/quickstart/fetch.py

28,614 newspaper headlines, each marked sarcastic (1) or not (0), from the package `evals` (MIT licence). Only that one file is taken
out of the package, its SHA-256 is checked, duplicates go before the rows are split, and nothing is committed.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from packages import members

PACKAGE = "evals==3.0.1.post1"
MEMBER = "evals/registry/data/sarcasm/samples.jsonl"
SHA256 = "4cb34ff4d2718da62368440ffe8dece7ece39a46b0fe4d172fdd8a76bc420f46"
INSTRUCTION = "Is this headline sarcastic? Answer 1 for yes, 0 for no."
FOLDER = Path(__file__).parent / "data"
TRAIN_ROWS, TEST_ROWS = 6000, 400


def headlines() -> list[tuple[str, str]]:
    """(headline, "1" or "0"), each headline once, in the package's order."""
    (content,) = members(PACKAGE, {MEMBER: SHA256}).values()
    distinct: dict[str, tuple[str, str]] = {}
    for line in content.decode().splitlines():
        row = json.loads(line)
        text = row["input"][-1]["content"].strip()
        distinct.setdefault(" ".join(text.lower().split()), (text, row["ideal"]))
    return list(distinct.values())


def chat_row(headline: str, label: str) -> str:
    """One line of OpenAI's chat format."""
    messages = [{"role": "user", "content": f"{INSTRUCTION}\n{headline}"}, {"role": "assistant", "content": label}]
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def fetch() -> Path:
    """The folder with train.jsonl and test.jsonl; fetched only when it is not there yet."""
    if not (FOLDER / "test.jsonl").is_file():
        rows = headlines()
        random.Random(0).shuffle(rows)
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / "train.jsonl").write_text("".join(chat_row(*r) for r in rows[TEST_ROWS : TEST_ROWS + TRAIN_ROWS]), encoding="utf-8")
        (FOLDER / "test.jsonl").write_text("".join(chat_row(*r) for r in rows[:TEST_ROWS]), encoding="utf-8")
    return FOLDER


if __name__ == "__main__":
    print(fetch())
