"""A small job for tiny models: is the sentence about a river or a cat? Their random output heads only let the loss fall, not the answer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any


def chat_lines(count: int, seed: int) -> str:
    """Conversations whose answer is `yes` when the sentence begins with a river, else `no`."""
    rng = random.Random(seed)
    lines = []
    for n in range(count):
        subject, answer = (("A river", "yes"), ("The cat", "no"))[n % 2]
        sentence = f"{subject} {rng.choice(['likes', 'reads', 'finds', 'follows'])} {rng.choice(['the news', 'cold water', 'two numbers'])} {rng.randint(0, 999)}."
        lines.append({"messages": [{"role": "user", "content": sentence}, {"role": "assistant", "content": answer}]})
    rng.shuffle(lines)
    return "".join(json.dumps(line) + "\n" for line in lines)


def write_job(folder: Path, model: Path, /, **changes: Any) -> Path:
    """`recipe.yaml` with train and test rows in `folder`; its path."""
    import yaml

    (folder / "train.jsonl").write_text(chat_lines(96, 1))
    (folder / "test.jsonl").write_text(chat_lines(24, 2))
    recipe: dict[str, Any] = {
        "model": str(model),
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
        "method": {"name": "lora", "rank": 8},
        "train": {"epochs": 2, "rows_per_step": 8, "learning_rate": 0.01, "precision": "fp32", "checkpoint_every": 5},
        "evaluate": {"forgetting_tokens": 1000},
        "export": ["adapter"],
    }
    for key, value in changes.items():
        recipe[key] = {**recipe[key], **value} if isinstance(value, dict) and isinstance(recipe.get(key), dict) else value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"
