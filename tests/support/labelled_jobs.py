"""Small jobs for heads: what a sentence is about, and who is named in it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

SUBJECTS = {"A river": "nature", "The cat": "animal", "My friend": "person", "The train": "thing"}
VERBS, OBJECTS = ("likes", "reads", "finds", "follows"), ("the news", "cold water", "two numbers", "an old song")


def labelled_line(rng: random.Random) -> dict[str, Any]:
    """A sentence whose label is told by its subject."""
    subject = rng.choice(list(SUBJECTS))
    return {"text": f"{subject} {rng.choice(VERBS)} {rng.choice(OBJECTS)} {rng.randint(0, 9999)}.", "label": SUBJECTS[subject]}


def tagged_line(rng: random.Random) -> dict[str, Any]:
    """Words in which rivers and friends are entities of two words, wherever they stand."""
    words: list[str] = []
    tags: list[str] = []
    for part in (rng.choice(list(SUBJECTS)), rng.choice(VERBS), rng.choice([*SUBJECTS, *OBJECTS])):
        kind = {"A river": "PLACE", "My friend": "PERSON"}.get(part)
        words += part.split()
        tags += [f"B-{kind}", f"I-{kind}"] if kind else ["O"] * len(part.split())
    return {"tokens": words, "tags": tags}


def write_labelled_job(folder: Path, model: Path | str, task: str, /, rows: int = 96, **changes: Any) -> Path:
    """`recipe.yaml` of task `classify` or `tag` with train, valid and test rows in `folder`; its path."""
    import yaml

    line = {"classify": labelled_line, "tag": tagged_line}[task]
    for name, count, seed in (("train", rows, 1), ("valid", 16, 2), ("test", 32, 3)):
        rng = random.Random(seed)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line(rng)) + "\n" for _ in range(count)))
    recipe: dict[str, Any] = {
        "model": str(model),
        "task": task,
        "data": {"train": "train.jsonl", "valid": "valid.jsonl", "test": "test.jsonl"},
        "method": {"name": "lora", "rank": 8},
        "train": {"epochs": 3, "rows_per_step": 8, "learning_rate": 0.01, "precision": "fp32", "checkpoint_every": 5},
        "export": ["adapter", "merged"],
    }
    for key, value in changes.items():
        recipe[key] = {**recipe[key], **value} if isinstance(value, dict) and isinstance(recipe.get(key), dict) else value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"
