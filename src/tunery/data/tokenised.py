"""Tokenised once: a source's rows as flat memory-mapped arrays, cached by content, and views of them to train on.

A cached folder `tokenised/<hash>/` depends on the source's bytes and on everything that turns a row into tokens
(`Renderer.fingerprint`), on nothing else: sequences are stored whole, and a view cuts them at its own `max_length`. So
another length, split or seed needs no second tokenising.

    tokens.npy    (T,) int32      all sequences, one after the other
    weights.npy   (T,) uint8, or float32 when a weight is neither 0 nor 1
    marks.npy     (T,) int32      what a task reads beside the tokens; empty where it reads nothing
    offsets.npy   (S+1,) int64    where each sequence begins
    rows.npy      (S,) int64      the row that a sequence comes from
    sums.npy      (S, 2) float64  the sum of its weights, and how many are above 0
    lines.npy     (R,) int64      each row's line
    hashes.npy    (R,) uint64     each row's `content_hash`
    groups.npy    (R,) uint64     each row's `group_hash`
    places.npy    (R,) int64      each row's place among the rows that `read_rows` gives
    about.json    kind of the rows, problems, how many tokens end every sequence and are kept when it is cut
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.data import hub, pairs
from tunery.data.content import LABELLED, content_hash, group_hash
from tunery.data.render import Renderer, Sequence
from tunery.data.rows import Row, read_rows, resolve
from tunery.errors import DataError
from tunery.models.cache import build_once

if TYPE_CHECKING:
    import numpy as np

Progress = Callable[[float, float | None, str], None]
"""Told what is done, of how much when that is known, and in words what it is."""

FORMAT = 4
KEPT_PROBLEMS = 1000
BATCH = 1024


class TokenisedFile:
    """One source, tokenised. Arrays are read-only and memory-mapped; see the file's head for their shapes."""

    def __init__(self, folder: Path, name: str, sha256: str) -> None:
        import numpy as np

        self.name, self.sha256 = name, sha256
        for array in ("tokens", "weights", "marks", "offsets", "rows", "sums", "lines", "hashes", "groups", "places"):
            setattr(self, array, np.load(folder / f"{array}.npy", mmap_mode="r", allow_pickle=False))
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.kind: str | None = about["kind"]
        self.tail: int = about["tail"]
        self.problem_count: int = about["problem_count"]
        self.problems = [DataError(name, line, message) for line, message in about["problems"]]

    tokens: np.ndarray
    weights: np.ndarray
    marks: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    sums: np.ndarray
    lines: np.ndarray
    hashes: np.ndarray
    groups: np.ndarray
    places: np.ndarray


def tokenise(source: str, base: Path | None, renderer: Renderer, cache: Path, progress: Progress | None = None) -> TokenisedFile:
    """The source's rows, tokenised now or earlier.

    Rows that cannot be used are left out and stand in `problems`; a source that cannot be opened at all raises DataError.
    Raises InputError when the tokenizer or its template cannot serve. Of several processes at once, one works.
    """
    path = resolve(source, base)
    if path is None:
        name, sha256, lines = source, hashlib.sha256(f"{source}@{hub.revision(source)}".encode()).hexdigest(), None
        kind = "hub"
    else:
        name, kind = str(path), path.suffix.lower()
        sha256, lines = _read_through(path)
    key = hashlib.sha256(json.dumps([FORMAT, kind, sha256, renderer.fingerprint]).encode()).hexdigest()[:32]
    folder = cache / "tokenised" / key

    def build(target: Path) -> None:
        _build(target, source, base, name, renderer, lines, progress)

    build_once(folder, build, (lambda words: progress(0, None, words)) if progress else None)
    return TokenisedFile(folder, name, sha256)


def _build(
    target: Path, source: str, base: Path | None, name: str, renderer: Renderer, lines: int | None, progress: Progress | None
) -> None:
    import numpy as np

    problems: list[DataError] = []
    counts = {"problems": 0, "places": 0}

    def problem(error: DataError) -> None:
        counts["problems"] += 1
        if len(problems) < KEPT_PROBLEMS:
            problems.append(error)

    offsets, owner, sums = [0], [], []
    row_lines: list[int] = []
    hashes: list[int] = []
    groups: list[int] = []
    places: list[int] = []
    fractional = False
    with (
        _growing(target / "tokens.npy", "<i4") as add_tokens,
        _growing(target / "weights.npy", "<f4") as add_weights,
        _growing(target / "marks.npy", "<i4") as add_marks,
    ):
        kind = None
        for batch in _batches(read_rows(source, base, problem)):
            for row, found in zip(batch, renderer.batch(batch), strict=True):
                place = counts["places"]
                counts["places"] += 1
                kind = kind or row.kind
                if isinstance(found, DataError):
                    problem(found)
                    continue
                for sequence in found:
                    add_tokens(sequence.tokens)
                    add_weights(sequence.weights)
                    if sequence.marks is not None:
                        add_marks(sequence.marks)
                    learned = sequence.weights > 0
                    fractional = fractional or not bool((sequence.weights[learned] == 1).all())
                    offsets.append(offsets[-1] + len(sequence.tokens))
                    owner.append(len(row_lines))
                    sums.append((float(sequence.weights.sum(dtype=np.float64)), float(learned.sum())))
                row_lines.append(row.line)
                hashes.append(content_hash(row))
                groups.append(group_hash(row))
                places.append(place)
            if progress:
                progress(min(batch[-1].line, lines) if lines else counts["places"], lines, f"tokenise {Path(name).name}")
    if progress and lines:
        progress(lines, lines, f"tokenise {Path(name).name}")
    if not fractional:  # a quarter of the size, which is what most data needs
        weights = np.load(target / "weights.npy", mmap_mode="r")
        with _growing(target / "weights.npy.new", "|u1") as add_weights:
            for start in range(0, len(weights), 1 << 24):
                add_weights(weights[start : start + (1 << 24)].astype(np.uint8))
        del weights
        (target / "weights.npy.new").replace(target / "weights.npy")
    np.save(target / "offsets.npy", np.array(offsets, dtype=np.int64))
    np.save(target / "rows.npy", np.array(owner, dtype=np.int64))
    np.save(target / "sums.npy", np.array(sums, dtype=np.float64).reshape(-1, 2))
    np.save(target / "lines.npy", np.array(row_lines, dtype=np.int64))
    np.save(target / "hashes.npy", np.array(hashes, dtype=np.uint64))
    np.save(target / "groups.npy", np.array(groups, dtype=np.uint64))
    np.save(target / "places.npy", np.array(places, dtype=np.int64))
    problems.sort(key=lambda e: e.line or 0)  # a row's form is judged before the rows ahead of it in the batch are rendered
    about = {
        "kind": kind,
        "tail": getattr(renderer, "tail", 0),
        "problem_count": counts["problems"],
        "problems": [(e.line, e.message) for e in problems],
    }
    (target / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


@contextmanager
def _growing(file: Path, dtype: str) -> Iterator[Any]:
    """A one-dimensional .npy file of a length not known before; numpy leaves room in the header for the length to grow."""
    import numpy as np
    from numpy.lib import format as npy

    length = 0
    with file.open("wb") as f:

        def header() -> int:
            f.seek(0)
            npy.write_array_header_1_0(f, {"descr": dtype, "fortran_order": False, "shape": (length,)})
            return f.tell()

        size = header()

        def add(values: np.ndarray) -> None:
            nonlocal length
            f.write(np.ascontiguousarray(values, dtype=dtype).tobytes())
            length += len(values)

        yield add
        if header() != size:
            raise RuntimeError(f"{file.name}: the header grew over the data")


def _read_through(path: Path) -> tuple[str, int | None]:
    """SHA-256 of the file, and how many lines it has (None for Parquet, whose rows are no lines)."""
    digest, lines = hashlib.sha256(), 0
    try:
        with path.open("rb") as f:
            while block := f.read(1 << 22):
                digest.update(block)
                lines += block.count(b"\n")
    except OSError as e:
        raise DataError(str(path), None, f"the file cannot be read ({e.strerror or e.__class__.__name__}); check its permissions") from None
    return digest.hexdigest(), None if path.suffix.lower() == ".parquet" else lines + 1


class Tokenised:
    """Sequences to train on: chosen rows of one or more tokenised sources, cut at `max_length`.

    `len()` and `[i]` give N sequences; `lengths` (N,) int64 tokens; `supervised` (N,) float64 sums of their weights;
    `learned` (N,) int64 tokens whose weight is above 0; `rows` (N,) int64 the row each comes from, counted over all sources.

    A chat or completion longer than `max_length` is cut at the right; its row is in `long_rows`, and `truncated` counts
    it. When nothing learned is left of a row it is gone, and `dropped` counts it too. Plain text is never cut: it is
    divided into pieces that overlap by one token, so that every token is predicted once, and no row is lost.
    A row for a classifier keeps what the tokenizer puts at the end of every text. Of a preference pair each side is cut at `max_length`; without something learned on both sides, or without a difference between
    them, it is gone. Its length is that of both sides together.
    """

    def __init__(self, parts: list[tuple[TokenisedFile, np.ndarray]], max_length: int) -> None:
        """parts: each source with the numbers of its rows, in the order wanted; a number may be there more than once."""
        import numpy as np

        self.files = [f for f, _ in parts]
        self.max_length = max_length
        self._base = np.cumsum([0, *(len(f.lines) for f in self.files)])
        columns = [_cut(n, f, np.asarray(chosen, dtype=np.int64), max_length) for n, (f, chosen) in enumerate(parts)]
        merged = np.concatenate(columns) if columns else _no_columns()
        self._file, self._begin, self._end = (merged[:, k].astype(np.int64) for k in range(3))
        self.lengths = merged[:, 8].astype(np.int64)
        self.rows = merged[:, 3].astype(np.int64) + self._base[self._file] if len(merged) else merged[:, 3].astype(np.int64)
        self.supervised = merged[:, 4]
        self.learned = merged[:, 5].astype(np.int64)
        was_cut = merged[:, 6].astype(bool)
        kept = self.learned > 0
        long_rows = np.unique(self.rows[was_cut])
        self._longest = {int(r): 0 for r in long_rows}
        for r, whole in zip(self.rows[was_cut].tolist(), merged[was_cut, 7].tolist(), strict=True):
            self._longest[r] = max(self._longest[r], int(whole))
        self.long_rows = long_rows
        self.truncated = len(long_rows)
        self.dropped = len(np.setdiff1d(np.unique(self.rows[~kept]), self.rows[kept]))
        for name in ("_file", "_begin", "_end", "lengths", "rows", "supervised", "learned"):
            setattr(self, name, getattr(self, name)[kept])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int | np.integer[Any]) -> Sequence:
        import numpy as np

        file, begin, end = self.files[self._file[i]], self._begin[i], self._end[i]
        weights = np.array(file.weights[begin:end], dtype=np.float32)
        tokens = np.array(file.tokens[begin:end], dtype=np.int32)
        if len(file.marks):
            found = Sequence(tokens, weights, np.array(file.marks[begin:end], dtype=np.int32))
            return pairs.cut(found, self.max_length) if file.kind == "preference" else found.cut(self.max_length, file.tail)
        weights[:1] = 0
        return Sequence(tokens, weights)

    @property
    def is_paired(self) -> bool:
        """Whether the sequences are preference pairs."""
        return any(file.kind == "preference" for file in self.files)

    @property
    def is_marked(self) -> bool:
        """Whether the marks are the classes of a head."""
        return any(file.kind in LABELLED and len(file.marks) for file in self.files)

    def marked(self, classes: int) -> np.ndarray:
        """(classes,) int64: how often each class is marked, in rows as often as they are shown and before any cut."""
        import numpy as np

        counts = np.zeros(classes)
        for n, file in enumerate(self.files):
            if not len(file.marks):
                continue
            here = self._file == n
            times = np.zeros(len(file.marks) + 1)
            np.add.at(times, self._begin[here], 1)
            np.add.at(times, self._end[here], -1)
            chosen = file.marks >= 0
            counts += np.bincount(file.marks[chosen], weights=times.cumsum()[:-1][chosen], minlength=classes)
        return counts.astype(np.int64)

    def where(self, row: int) -> tuple[str, int]:
        """(source, line) of a row number."""
        import numpy as np

        n = int(np.searchsorted(self._base, row, side="right")) - 1
        return self.files[n].name, int(self.files[n].lines[row - self._base[n]])

    def whole_length(self, row: int) -> int:
        """Tokens that a row of `long_rows` had before it was cut."""
        return self._longest[row]


def _cut(number: int, file: TokenisedFile, chosen: np.ndarray, max_length: int) -> np.ndarray:
    """(N, 9) float64: file, begin, end, row, sum of weights, learned tokens, was cut, whole length, length after the cut.

    Whole numbers below 2**53 are exact.
    """
    import numpy as np

    if not len(chosen):
        return _no_columns()
    first = np.searchsorted(file.rows, chosen, side="left")
    count = np.searchsorted(file.rows, chosen, side="right") - first
    # The sequences of each chosen row, row after row.
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    sequences = np.repeat(first, count) + within
    begin, end = file.offsets[sequences], file.offsets[sequences + 1]
    size = end - begin
    owner = np.repeat(chosen, count)
    table = np.column_stack(
        [np.full(len(sequences), number), begin, end, owner, file.sums[sequences], np.zeros(len(sequences)), size, size]
    ).astype(np.float64)
    if file.kind == "preference":
        return _cut_pairs(table, file, sequences, max_length)
    long = np.flatnonzero(size > max_length)
    if file.kind in LABELLED:
        for i in long.tolist():
            whole = slice(begin[i], end[i])
            kept = Sequence(file.tokens[whole], np.asarray(file.weights[whole], np.float32)).cut(max_length, file.tail).weights
            table[i, 4:] = (kept.sum(dtype=np.float64), (kept > 0).sum(), 1, size[i], len(kept))
        return table
    if not len(long):
        return table
    pieces: list[np.ndarray] = []
    at = 0
    for i in long.tolist():
        pieces.append(table[at:i])
        at = i + 1
        b, e = int(begin[i]), int(end[i])
        pieces_of_text = [(s, min(s + max_length, e)) for s in range(b, e - 1, max_length - 1)]
        ends = pieces_of_text if file.kind == "text" else [(b, b + max_length)]
        for s, stop in ends:
            weights = np.asarray(file.weights[s + 1 : stop])
            total = float(weights.sum(dtype=np.float64))
            pieces.append(
                np.array(
                    [[number, s, stop, table[i, 3], total, (weights > 0).sum(), file.kind != "text", e - b, stop - s]], dtype=np.float64
                )
            )
    pieces.append(table[at:])
    return np.concatenate(pieces)


def _cut_pairs(table: np.ndarray, file: TokenisedFile, sequences: np.ndarray, max_length: int) -> np.ndarray:
    """The table of `_cut` with the columns after the row's changed for pairs with a side longer than `max_length`."""
    import numpy as np

    second = np.flatnonzero(np.diff(file.marks) == 1)[sequences] + 1  # where each pair's second side begins
    longest = np.maximum(second - table[:, 1], table[:, 2] - second)
    table[:, 7] = longest
    for i in np.flatnonzero(longest > max_length).tolist():
        at = slice(int(table[i, 1]), int(table[i, 2]))
        found = pairs.cut(Sequence(file.tokens[at], np.asarray(file.weights[at], np.float32), file.marks[at]), max_length)
        learned = (found.weights > 0).sum() if pairs.usable(found) else 0
        table[i, 4:] = (found.weights.sum(dtype=np.float64), learned, 1, longest[i], len(found.tokens))
    return table


def _no_columns() -> np.ndarray:
    import numpy as np

    return np.zeros((0, 9))
