"""From a recipe's `data` to sequences to train on: read, validate, split, tokenise, count. The one way in, for `check` and `train`.

So train refuses what check refuses; the only difference is that check hears of every problem, and train of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tunery.data.content import conversation, question_and_answer
from tunery.data.near_duplicates import near_duplicates as find_near_duplicates
from tunery.data.pairs import longer_preferred
from tunery.data.render import Renderer
from tunery.data.rows import Row, read_rows
from tunery.data.split import repeat, split
from tunery.data.stats import DataStats, NearDuplicates, SplitStats, split_stats
from tunery.data.tokenised import Progress, Tokenised, TokenisedFile, tokenise
from tunery.errors import DataError
from tunery.recipe import Data, WeightedSource

if TYPE_CHECKING:
    import numpy as np

COMPARED_ROWS = 200_000
"""Rows among which near-duplicates are looked for; their texts are in memory for it."""
EXAMPLES = 5

Part = tuple[str, TokenisedFile, "np.ndarray"]
"""A source's name in the recipe, the source, and numbers of its rows in ascending order."""


@dataclass(frozen=True)
class Sample:
    """A row as it is learned: its text in stretches, each with the weight of learning it."""

    source: str
    line: int
    stretches: list[tuple[str, float]]


@dataclass(frozen=True)
class Prepared:
    """The data of a run. `test` holds the rows themselves, because evaluation asks and scores them; `tested` is the same, tokenised."""

    train: Tokenised
    valid: Tokenised | None
    test: list[Row]
    tested: Tokenised | None
    stats: DataStats
    problem_count: int
    renderer: Renderer
    base: Path | None
    train_parts: list[Part]

    def training_rows(self) -> Iterator[Row]:
        """The training rows themselves, each once, one after the other."""
        for source, file, rows in self.train_parts:
            yield from _read_again(source, file, rows, self.base)

    def training_texts(self) -> Iterator[str]:
        """What the training rows say, one after the other: the text of all messages of a row."""
        for row in self.training_rows():
            yield "\n".join(m["content"] for m in conversation(row))

    def samples(self, count: int, seed: int = 0) -> list[Sample]:
        """A few training rows, chosen by the seed."""
        import numpy as np

        chosen = np.random.default_rng(seed).permutation(len(self.train))[:count]
        return [self._sample(int(n)) for n in chosen]

    def _sample(self, n: int) -> Sample:
        import numpy as np

        sequence = self.train[n]
        own = getattr(self.renderer, "stretches", None)
        if own is not None:
            return Sample(*self.train.where(int(self.train.rows[n])), own(sequence))
        borders = [0, *(np.flatnonzero(np.diff(sequence.weights)) + 1).tolist(), len(sequence.tokens)]
        decode = self.renderer.tokenizer.backend_tokenizer.decode
        stretches = [
            (decode(sequence.tokens[a:b].tolist(), skip_special_tokens=False), float(sequence.weights[a])) for a, b in pairwise(borders)
        ]
        return Sample(*self.train.where(int(self.train.rows[n])), stretches)


def prepare(
    data: Data,
    renderer: Renderer,
    max_length: int,
    context: int,
    seed: int,
    base: Path | None,
    cache: Path,
    on_problem: Callable[[DataError], None] | None = None,
    progress: Progress | None = None,
    kinds: tuple[str, ...] | None = None,
    near_duplicates: bool = False,
) -> Prepared:
    """The sequences of `data`, whose paths are relative to `base`; tokenised sources are kept in `cache`.

    max_length and context are in tokens; the smaller is where rows are cut. kinds: the kinds of row that the task takes
    (None: any). near_duplicates: look for them too, which reads the rows once more. Without `on_problem` the first problem
    is raised as DataError; with it each is handed over, and what is left is prepared. Raises InputError when the tokenizer
    or its chat template cannot serve, or a hub cannot be reached.
    """
    problems = _Problems(on_problem)
    length = min(max_length, context)

    def load(source: str) -> TokenisedFile | None:
        try:
            file = tokenise(source, base, renderer, cache, progress)
        except DataError as e:
            problems.add(e)
            return None
        problems.add_all(file)
        if kinds is not None and file.kind is not None and file.kind not in kinds:
            line = int(file.lines[0]) if len(file.lines) else None
            wanted = " or ".join(kinds)
            problems.add(
                DataError(
                    file.name, line, f"the recipe's task takes {wanted} rows, these are {file.kind} rows; change the task or the data"
                )
            )
        return file

    sources = (WeightedSource(path=data.train),) if isinstance(data.train, str) else data.train
    train_files = [(s, f) for s in sources if (f := load(s.path)) is not None]
    parts: dict[str, list[Part]] = {"train": []}
    for name, value in (("valid", data.valid), ("test", data.test)):
        if isinstance(value, str):
            file = load(value)
            parts[name] = [(value, file, _all(file))] if file is not None else []
    _deal(data, train_files, parts, seed, problems)

    weights = [s.weight for s, _ in train_files]
    views = {}
    for name, side in parts.items():
        shown = (
            [(f, repeat(rows, w, seed + n)) for n, ((_, f, rows), w) in enumerate(zip(side, weights, strict=True))]
            if name == "train"
            else [(f, rows) for _, f, rows in side]
        )
        views[name] = Tokenised(shown, length)
        _check_lengths(name, views[name], data.max_truncated, max_length, context, problems)
    train = views["train"]
    if not len(train) and not problems.count:
        raise DataError(sources[0].path, None, "no row is left to train on; add rows, or set less aside")

    stats = _stats(parts, views, near_duplicates, base, progress, getattr(renderer, "labels", ()))
    for name in ("valid", "test"):
        if any(len(rows) for _, _, rows in parts.get(name, [])) and not len(views[name]) and not problems.count:
            mend = f"every {name} row is cut before its answer; raise train.max_length (now {max_length})"
            problems.add(DataError(parts[name][0][1].name, None, mend))
    test = [row for source, file, rows in parts.get("test", []) for row in _read_again(source, file, rows, base)]
    if "test" in views:
        long = {views["test"].where(n) for n in views["test"].long_rows.tolist()}
        for row in test:
            if (row.source, row.line) in long and row.kind in ("chat", "completion") and (size := len(renderer.prompt(row).ids)) >= context:
                problems.add(
                    DataError(
                        row.source,
                        row.line,
                        f"the prompt of this test row has {size} tokens and the model's context is {context}; shorten it",
                    )
                )
    return Prepared(train, views.get("valid"), test, views.get("test"), stats, problems.count, renderer, base, parts["train"])


class _Problems:
    def __init__(self, on_problem: Callable[[DataError], None] | None) -> None:
        self.on_problem, self.count = on_problem, 0

    def add(self, error: DataError) -> None:
        self.count += 1
        if self.on_problem is None:
            raise error
        self.on_problem(error)

    def add_all(self, file: TokenisedFile) -> None:
        before = self.count
        for error in file.problems:
            self.add(error)
        self.count = before + file.problem_count


def _all(file: TokenisedFile) -> np.ndarray:
    import numpy as np

    return np.arange(len(file.lines))


def _deal(
    data: Data, train_files: list[tuple[WeightedSource, TokenisedFile]], parts: dict[str, list[Part]], seed: int, problems: _Problems
) -> None:
    """Put the training files' rows into `parts`, setting aside what `valid` and `test` ask for as a share."""
    import numpy as np

    fractions = {name: value for name, value in (("test", data.test), ("valid", data.valid)) if isinstance(value, float)}
    groups = np.concatenate([f.groups for _, f in train_files]) if train_files else np.zeros(0, np.uint64)
    if sum(fractions.values()) >= 1:
        problems.add(
            DataError(train_files[0][1].name if train_files else "data", None, "valid and test together take all rows; lower their shares")
        )
        fractions = {}
    sides = split(groups, fractions, seed)
    for name in fractions:
        if train_files and len(groups) and not sides[name].any():
            problems.add(
                DataError(
                    train_files[0][1].name,
                    None,
                    f"there are too few different rows to set {fractions[name]:.0%} aside for {name}; add rows, or remove `data.{name}`",
                )
            )
    at = 0
    for name in sides:
        parts.setdefault(name, [])
    for source, file in train_files:
        here = slice(at, at := at + len(file.groups))
        for name, side in sides.items():
            parts[name].append((source.path, file, np.flatnonzero(side[here])))


def _check_lengths(name: str, view: Tokenised, allowed: float, max_length: int, context: int, problems: _Problems) -> None:
    import numpy as np

    if not view.truncated:
        return
    limit = min(max_length, context)
    raising = (
        f"raise train.max_length (the model's context is {context})"
        if limit < context
        else f"shorten them: the model's context is {context}"
    )
    which = "train.max_length" if limit < context or max_length == context else "the model's context"
    if allowed == 0:
        for row in view.long_rows.tolist():
            source, line = view.where(row)
            problems.add(
                DataError(
                    source,
                    line,
                    f"this {name} row has {view.whole_length(row)} tokens, {which} is {limit}, and cutting is off; "
                    f"{raising}, or set data.max_truncated above 0",
                )
            )
        return
    rows = len(np.union1d(view.rows, view.long_rows))
    share = view.truncated / rows
    if share > allowed:
        source, line = view.where(int(view.long_rows[0]))
        problems.add(
            DataError(
                source,
                line,
                f"{view.truncated} of {rows} {name} rows ({share:.1%}), this the first, are longer than {which} ({limit} tokens), "
                f"more than data.max_truncated allows ({allowed:.1%}); {raising}, or raise data.max_truncated",
            )
        )


def _stats(
    parts: dict[str, list[Part]],
    views: dict[str, Tokenised],
    near: bool,
    base: Path | None,
    progress: Progress | None,
    labels: tuple[str, ...],
) -> DataStats:
    import numpy as np

    hashes = {
        name: np.concatenate([f.hashes[rows] for _, f, rows in side]) if side else np.zeros(0, np.uint64) for name, side in parts.items()
    }
    splits: dict[str, SplitStats] = {name: split_stats(view, hashes[name]) for name, view in views.items()}
    pairs = [(a, b) for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")) if a in hashes and b in hashes]
    train = splits["train"]
    seen = np.concatenate([h for name, h in hashes.items() if name != "test"])
    return DataStats(
        train_rows=train.rows,
        trained_tokens=train.tokens,
        supervised_tokens=train.supervised_tokens,
        truncated_rows=train.truncated_rows,
        dropped_rows=train.dropped_rows,
        duplicate_rows=train.duplicate_rows,
        leaked_rows=int(np.isin(hashes["test"], seen).sum()) if "test" in hashes else 0,
        splits=splits,
        shared={f"{a}/{b}": int(np.isin(hashes[b], hashes[a]).sum()) for a, b in pairs},
        sources={f.name: f.sha256 for side in parts.values() for _, f, _ in side},
        near_duplicates=_near(parts, base, progress) if near else None,
        labels={name: dict(zip(labels, view.marked(len(labels)).tolist(), strict=True)) for name, view in views.items() if view.is_marked},
        longer_preferred=longer_preferred(view[n] for n in range(len(view))) if (view := views["train"]).is_paired else None,
    )


def _near(parts: dict[str, list[Part]], base: Path | None, progress: Progress | None) -> NearDuplicates:
    texts: list[tuple[str, str]] = []
    side_of: list[str] = []
    places: list[tuple[str, int]] = []
    left_out = 0
    seen: set[int] = set()
    for name in sorted(parts, key=("train", "valid", "test").index):
        for source, file, rows in parts[name]:
            for row, content in zip(_read_again(source, file, rows, base), file.hashes[rows].tolist(), strict=True):
                if content in seen:
                    continue
                if len(texts) == COMPARED_ROWS:
                    left_out += 1
                    continue
                seen.add(content)
                texts.append(question_and_answer(row))
                side_of.append(name)
                places.append((row.source, row.line))
    within: dict[str, set[int]] = {name: set() for name in parts}
    across: dict[str, set[int]] = {}
    pairs = find_near_duplicates(texts, progress)
    for pair in pairs:
        a, b = side_of[pair.first], side_of[pair.second]
        if a == b:
            within[a].add(pair.second)
        else:
            across.setdefault(f"{a}/{b}", set()).add(pair.second)
    examples = sorted(pairs, key=lambda p: (side_of[p.first] == side_of[p.second], p.first, p.second))[:EXAMPLES]  # across sides first
    return NearDuplicates(
        rows={name: len(found) for name, found in within.items()},
        across={name: len(found) for name, found in across.items()},
        examples=[("{}:{}".format(*places[p.first]), "{}:{}".format(*places[p.second]), round(p.jaccard, 3)) for p in examples],
        examined=len(texts),
        left_out=left_out,
    )


def _read_again(source: str, file: TokenisedFile, rows: np.ndarray, base: Path | None) -> Iterator[Row]:
    """The rows themselves, by their numbers in the tokenised source."""
    wanted = set(file.places[rows].tolist())
    if wanted:
        yield from (row for place, row in enumerate(read_rows(source, base, on_problem=lambda _: None)) if place in wanted)
