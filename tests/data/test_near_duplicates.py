from __future__ import annotations

import random

import pytest

from tunery.data import near_duplicates as module
from tunery.data.near_duplicates import Pair, _stretches, near_duplicates

WORDS = [
    f"{a}{b}{c}" for a in ("ba", "ko", "tri", "mel", "sun") for b in ("ran", "lo", "tis", "vek") for c in ("da", "mo", "", "rit", "en")
]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def jaccard(a: str, b: str) -> float:
    x, y = _stretches(a), _stretches(b)
    return len(x & y) / len(x | y)


def planted(count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs at Jaccard 0.8 to 1, most of them near 0.8 where they are hardest to find; edits are words and letters."""
    rng = random.Random(seed)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        text = sentence(rng, rng.randint(6, 40))
        words = text.split()
        for _ in range(rng.randint(1, 4)):
            k = rng.randrange(len(words))
            words[k] = rng.choice([rng.choice(WORDS), words[k] + "s", words[k][::-1]])
        changed = " ".join(words)
        index = jaccard(f"{text}\n", f"{changed}\n")
        if 0.8 <= index < 1 and (index < 0.87 or rng.random() < 0.3):
            pairs.append((text, changed))
    return pairs


def test_planted_pairs_are_found_and_no_others() -> None:
    pairs = planted(600, seed=0)
    rng = random.Random(1)
    strangers = [sentence(rng, rng.randint(6, 40)) for _ in range(600)]
    rows = [*[a for a, _ in pairs], *strangers, *[b for _, b in pairs]]
    found = {(p.first, p.second): p.jaccard for p in near_duplicates([(row, "") for row in rows])}
    wanted = {(n, n + 1200) for n in range(600)}
    assert len(wanted & set(found)) / 600 >= 0.95
    for (first, second), index in found.items():  # confirmed by counting: not one is wrong
        assert index == pytest.approx(jaccard(f"{rows[first]}\n", f"{rows[second]}\n"))
        assert index >= 0.8


def test_an_instruction_that_all_rows_share_makes_none_of_them_alike() -> None:
    rng = random.Random(2)
    before, after = (
        "Is this headline meant seriously, or is it a joke? Answer with one word.\n\n",
        "\n\nThink of the source before you answer.",
    )
    headlines = [sentence(rng, 6) for _ in range(100)]
    rows = [(before + h + after, rng.choice("01")) for h in headlines]
    assert jaccard(rows[0][0], rows[1][0]) > 0.5
    assert near_duplicates(rows) == []
    # and one row without it, or a real near-duplicate under it, changes nothing
    double = headlines[0] + " " + "and more so on than ever"[:4]
    found = near_duplicates([*rows, (before + double + after, rows[0][1]), ("something else", "1")])
    assert [(p.first, p.second) for p in found] == [(0, 100)]


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ("Hi there!", "hi  THERE!", True),
        ("12 - 5", "12 - 7", False),
        ("a", "a", True),
        ("a", "b", False),
        ("日本語の文章がここにあります、とても長い文章です。", "本本語の文章がここにあります、とても長い文章です。", True),
    ],
)
def test_short_rows(first: str, second: str, alike: bool) -> None:
    assert bool(near_duplicates([(first, "yes"), (second, "yes")])) is alike


def test_a_large_group_of_like_rows_is_found_without_comparing_all_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_GROUP", 10)
    rng = random.Random(3)
    text = sentence(rng, 40)
    rows = [(f"{text} {n}", "") for n in range(300)]
    found = near_duplicates([*rows, *[(sentence(rng, 40), "") for _ in range(30)]])
    assert {p.second for p in found} == set(range(1, 300))
    assert len(found) <= 300 * 11


def test_progress_is_told() -> None:
    told: list[tuple[float, float | None, str]] = []
    near_duplicates([("a", "b")] * 3, lambda *say: told.append(say))
    assert told == [(3, 3, "near-duplicates")]
    assert near_duplicates([]) == []
    assert near_duplicates([("a b c d e f", "")] * 2) == [Pair(0, 1, 1.0)]
