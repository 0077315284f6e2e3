from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery.errors import InputError
from tunery.evaluate.probe_text import DOMAINS, MODULES, PIECE, documents, probe_documents, seen_filter, utf8_bytes


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_there_is_text_enough_in_pieces_of_a_size(domain: str) -> None:
    pieces = documents(domain)
    # 25,000 tokens of a domain are about 100,000 bytes at four bytes a token; there is twice as much.
    assert sum(map(utf8_bytes, pieces)) > 200_000
    assert all(PIECE // 2 <= len(p) < PIECE + 1000 for p in pieces)
    assert len(set(pieces)) == len(pieces)


def test_the_domains_are_what_they_say() -> None:
    assert sum("def " in p and "self" in p for p in documents("code")) > 100
    assert sum(" the " in p for p in documents("documentation")) > 0.9 * len(documents("documentation"))


def test_the_choice_is_the_same_in_another_process_and_known_by_its_hash() -> None:
    ours = probe_documents(("documentation", "code"), 30_000)
    code = (
        "from tunery.evaluate.probe_text import probe_documents; import sys;"
        "assert 'numpy' not in sys.modules; print(probe_documents(('documentation', 'code'), 30_000).sha256)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert other.stdout.strip() == ours.sha256
    assert probe_documents(("documentation", "code"), 32_500).sha256 != ours.sha256
    text = "".join(f"{domain}\0{piece}\0" for domain, pieces in ours.documents.items() for piece in pieces)
    assert ours.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_the_amount_is_reached_and_hardly_passed_by_any_measure() -> None:
    probe = probe_documents(("documentation", "code"), 50_000)
    for pieces in probe.documents.values():
        assert 50_000 <= sum(map(utf8_bytes, pieces)) < 50_000 + 2 * PIECE
    by_words = probe_documents(("code",), 3000, measure=lambda text: len(text.split()))
    assert 3000 <= sum(len(p.split()) for p in by_words.documents["code"]) < 3000 + PIECE
    assert probe.short == ()


def test_the_choice_is_spread_over_the_modules() -> None:
    chosen = probe_documents(("code",), 100_000).documents["code"]
    library = Path(sysconfig.get_path("stdlib"))
    files = [(library / f"{name}.py").read_text(encoding="utf-8") for name in MODULES if (library / f"{name}.py").is_file()]
    origins = {next(i for i, text in enumerate(files) if piece in text) for piece in chosen}
    assert len(origins) > 20


def test_pieces_that_the_training_saw_are_left_out_and_counted() -> None:
    first = probe_documents(("documentation",), 20_000).documents["documentation"]
    words = re.findall(r"\w+", first[0])
    thirteen, twelve = words[40:53], re.findall(r"\w+", first[1])[40:52]
    training = ["nothing of it", "Before. " + ", ".join(w.upper() for w in thirteen) + " after", " ".join(twelve) + " otherwise"]
    again = probe_documents(("documentation",), 20_000, exclude=seen_filter(iter(training)))
    assert first[0] not in again.documents["documentation"]
    assert first[1] in again.documents["documentation"]
    assert again.excluded == {"documentation": 1}
    assert sum(map(utf8_bytes, again.documents["documentation"])) >= 20_000


def test_training_on_the_whole_domain_leaves_nothing_and_says_so() -> None:
    probe = probe_documents(("documentation", "code"), 10_000, exclude=seen_filter(documents("documentation")))
    assert probe.documents["documentation"] == ()
    assert probe.short == ("documentation",)
    assert sum(map(utf8_bytes, probe.documents["code"])) >= 10_000


words = st.lists(st.sampled_from("abcdef"), min_size=0, max_size=40).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(words, st.lists(words, max_size=3))
def test_the_filter_is_the_rule_of_thirteen_words(piece: str, training: list[str]) -> None:
    def shingles(text: str) -> set[tuple[str, ...]]:
        w = text.split()
        return {tuple(w[i : i + 13]) for i in range(len(w) - 12)}

    expected = any(shingles(piece) & shingles(text) for text in training)
    assert seen_filter(training, candidates=[piece])(piece) == expected


def test_the_filter_refuses_a_text_that_it_was_not_made_for() -> None:
    with pytest.raises(ValueError, match="not among the candidates"):
        seen_filter([], candidates=["a"])("b")


def test_an_unknown_domain_is_refused() -> None:
    with pytest.raises(InputError, match="known: documentation, code"):
        documents("poems")
