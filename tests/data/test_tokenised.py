from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.data import tokenised
from tunery.data.render import Renderer
from tunery.data.rows import read_rows
from tunery.data.tokenised import Tokenised, tokenise
from tunery.errors import InputError

Write = Callable[..., Path]
Make = Callable[[str], Renderer]


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "messages": [
                {"role": "user", "content": "the cat " * rng.randint(1, 6) + str(n)},
                {"role": "assistant", "content": "a river", "weight": rng.choice([0, 1])},
                {"role": "user", "content": "and?"},
                {"role": "assistant", "content": "cold water " * rng.randint(1, 3)},
            ]
        }
        for n in range(count)
    ]


def all_of(file: tokenised.TokenisedFile) -> np.ndarray:
    return np.arange(len(file.lines))


def test_what_is_stored_is_what_the_renderer_gives(write: Write, renderer: Make, tmp_path: Path) -> None:
    r = renderer("qwen3")  # which gives a sequence a turn
    file = write("a.jsonl", rows(30))
    stored = tokenise(str(file), None, r, tmp_path / "cache")
    view = Tokenised([(stored, all_of(stored))], 10_000)
    expected = [(n, s) for n, row in enumerate(read_rows(str(file))) for s in r.sequences(row)]
    assert len(view) == len(expected) > 30
    for i, (n, sequence) in enumerate(expected):
        found = view[i]
        assert found.tokens.tolist() == sequence.tokens.tolist()
        assert found.weights.tolist() == sequence.weights.tolist()
        assert (str(found.tokens.dtype), str(found.weights.dtype)) == ("int32", "float32")
        assert view.rows[i] == n
        assert view.lengths[i] == len(sequence.tokens)
        assert view.supervised[i] == sequence.weights.sum()
        assert view.where(n) == (str(file), n + 1)
    assert (view.truncated, view.dropped) == (0, 0)
    assert stored.weights.dtype == np.uint8


def test_weights_between_zero_and_one_are_kept(write: Write, renderer: Make, tmp_path: Path) -> None:
    some = rows(3)
    some[1]["messages"][3]["weight"] = 0.3
    stored = tokenise(str(write("a.jsonl", some)), None, renderer("smollm2"), tmp_path / "cache")
    view = Tokenised([(stored, all_of(stored))], 10_000)
    assert np.float32(0.3) in view[1].weights
    assert view.supervised[1] == pytest.approx(view[1].weights.sum(dtype=np.float64))
    assert view.learned[1] == (view[1].weights > 0).sum()


def test_tokenised_once_whatever_the_name_and_again_when_the_content_changes(
    write: Write, renderer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, r = tmp_path / "cache", renderer("smollm2")
    content = rows(5)
    first = tokenise(str(write("a.jsonl", content)), None, r, cache)
    with monkeypatch.context() as patch:
        patch.setattr(r, "batch", lambda rows: pytest.fail("tokenised a second time"))
        again = tokenise(str(write("b.jsonl", content)), None, r, cache)
        assert (again.tokens == first.tokens).all()
        assert again.name.endswith("b.jsonl")
        assert again.sha256 == first.sha256
    other = tokenise(str(write("a.jsonl", rows(5, seed=1))), None, r, cache)
    assert other.sha256 != first.sha256
    by_another = tokenise(str(write("a.jsonl", content)), None, renderer("tools"), cache)
    assert by_another.tokens.tolist() != first.tokens.tolist()
    assert len([p for p in (cache / "tokenised").iterdir() if p.is_dir()]) == 3


def test_problems_are_cached_with_their_lines_and_told_under_the_new_name(write: Write, renderer: Make, tmp_path: Path) -> None:
    content = (
        f'{json.dumps(rows(1)[0])}\n{{\n{{"messages": [{{"role": "system", "content": "x"}}, {{"role": "assistant", "content": "y"}}]}}\n'
    )
    for name in ("a.jsonl", "b.jsonl"):
        stored = tokenise(str(write(name, content)), None, renderer("alpaca"), tmp_path / "cache")
        assert [(p.source, p.line) for p in stored.problems] == [(str(tmp_path / name), 2), (str(tmp_path / name), 3)]
        assert stored.problem_count == 2
        assert stored.lines.tolist() == [1]


def test_a_template_that_cannot_serve_leaves_nothing_behind(write: Write, renderer: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no chat template"):
        tokenise(str(write("a.jsonl", rows(1))), None, renderer("base"), tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache" / "tokenised").iterdir() if p.is_dir()]


def test_two_processes_at_once_tokenise_once_and_get_the_same(write: Write, tmp_path: Path, tiny_llama: Path) -> None:
    file = write("a.jsonl", rows(3000))
    code = """
import hashlib, sys, time
from pathlib import Path
from tunery.data.render import Renderer
from tunery.data.tokenised import tokenise
from tunery.models.load import load_tokenizer
folder, file, cache, me, other = sys.argv[1:]
renderer = Renderer(load_tokenizer(folder))
worked, batch = [], renderer.batch
renderer.batch = lambda rows: worked.append(1) or batch(rows)
Path(me).touch()
while not Path(other).exists():
    time.sleep(0.005)
f = tokenise(file, None, renderer, Path(cache))
print(bool(worked), hashlib.sha256(b"".join(bytes(a) for a in (f.tokens, f.weights, f.offsets, f.hashes))).hexdigest())
"""
    arguments = [str(tiny_llama), str(file), str(tmp_path / "cache")]
    flags = [str(tmp_path / "one"), str(tmp_path / "two")]
    path = str(Path(tokenised.__file__).parents[2])
    processes = [
        subprocess.Popen([sys.executable, "-c", code, *arguments, *order], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": path})
        for order in (flags, flags[::-1])
    ]
    answers = [p.communicate(timeout=120)[0].split() for p in processes]
    assert sorted(a[0] for a in answers) == ["False", "True"]
    assert answers[0][1] == answers[1][1]


# ---- views: cutting ----


def test_a_chat_is_cut_at_the_right_counted_and_dropped_when_nothing_is_left(write: Write, renderer: Make, tmp_path: Path) -> None:
    r = renderer("smollm2")
    stored = tokenise(str(write("a.jsonl", rows(40))), None, r, tmp_path / "cache")
    whole = Tokenised([(stored, all_of(stored))], 10_000)
    for length in (int(np.median(whole.lengths)), int(whole.lengths.min()) - 25, 5):
        view = Tokenised([(stored, all_of(stored))], length)
        expected = [whole[i].cut(length) for i in range(len(whole))]
        kept = [n for n, s in enumerate(expected) if s.weights.any()]
        assert view.rows.tolist() == kept
        assert view.truncated == int((whole.lengths > length).sum())
        assert view.dropped == 40 - len(kept)
        for i, n in enumerate(kept):
            assert view[i].tokens.tolist() == expected[n].tokens.tolist()
            assert view[i].weights.tolist() == expected[n].weights.tolist()
            assert view.supervised[i] == expected[n].weights.sum()
            assert view.learned[i] == (expected[n].weights > 0).sum()
        for row in view.long_rows.tolist():
            assert view.whole_length(row) == whole.lengths[row] > length
    assert len(view) == 0  # nothing is learned in five tokens


texts = st.lists(st.text(st.sampled_from("abc d\n"), min_size=1, max_size=120).filter(str.strip), min_size=1, max_size=5)


@given(texts, st.integers(2, 20))
def test_long_text_is_divided_so_that_every_token_is_learned_once(
    tmp_path_factory: pytest.TempPathFactory, contents: list[str], length: int
) -> None:
    from chat_families import make_tokenizer

    folder = tmp_path_factory.mktemp("text")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in contents))
    r = Renderer(make_tokenizer("base-bos"))
    stored = tokenise(str(folder / "a.jsonl"), None, r, folder / "cache")
    view = Tokenised([(stored, all_of(stored))], length)
    assert (view.truncated, view.dropped) == (0, 0)
    assert view.lengths.max() <= length
    for n, row in enumerate(read_rows(str(folder / "a.jsonl"))):
        (sequence,) = r.sequences(row)
        pieces = [view[i] for i in np.flatnonzero(view.rows == n)]
        learned = [t for piece in pieces for t in piece.tokens[piece.weights > 0].tolist()]
        assert learned == sequence.tokens[1:].tolist()
        for before, after in pairwise(pieces):
            assert after.tokens[0] == before.tokens[-1]  # what comes next is predicted from the last token
    assert view.learned.sum() == sum(len(r.sequences(row)[0].tokens) - 1 for row in read_rows(str(folder / "a.jsonl")))


def test_views_choose_and_repeat_rows_over_several_sources(write: Write, renderer: Make, tmp_path: Path) -> None:
    r = renderer("qwen3")
    files = [tokenise(str(write(f"{n}.jsonl", rows(6, seed=n))), None, r, tmp_path / "cache") for n in range(2)]
    whole = [Tokenised([(f, all_of(f))], 10_000) for f in files]
    view = Tokenised([(files[0], np.array([4, 1, 4])), (files[1], np.array([5]))], 10_000)
    expected = [(0, n, i) for n in (4, 1, 4) for i in np.flatnonzero(whole[0].rows == n)] + [
        (1, 5, i) for i in np.flatnonzero(whole[1].rows == 5)
    ]
    assert len(view) == len(expected)
    for i, (file, n, at) in enumerate(expected):
        assert view[i].tokens.tolist() == whole[file][at].tokens.tolist()
        assert view.rows[i] == n + 6 * file
        assert view.where(int(view.rows[i])) == (files[file].name, n + 1)


def test_a_view_of_nothing_is_empty(write: Write, renderer: Make, tmp_path: Path) -> None:
    stored = tokenise(str(write("a.jsonl", rows(2))), None, renderer("smollm2"), tmp_path / "cache")
    for view in (Tokenised([(stored, np.zeros(0, np.int64))], 10), Tokenised([], 10)):
        assert (len(view), view.truncated, view.dropped, view.lengths.sum()) == (0, 0, 0, 0)
    empty = tokenise(str(write("b.jsonl", "")), None, renderer("smollm2"), tmp_path / "cache")
    assert len(Tokenised([(empty, all_of(empty))], 10)) == 0
    assert "no rows" in str(empty.problems[0])
