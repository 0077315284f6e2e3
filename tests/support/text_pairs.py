"""Made-up pairs of answers to a prompt, as text."""

from __future__ import annotations

import random

SUBJECTS = ("the cat", "a river", "my friend", "the teacher", "our garden", "the train")
ENDS = (" likes a long book", " reads cold water and the news", " finds two numbers", " sees an old song of a green tree", " learns")


def text_pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of text whose answers differ in length; neighbours have different prompts."""
    rng = random.Random(seed)
    rows = []
    for n in range(count):
        chosen, rejected = rng.sample(ENDS, 2)
        rows.append({"prompt": f"{SUBJECTS[n % 6]} {n}", "chosen": chosen, "rejected": rejected})
    return rows
