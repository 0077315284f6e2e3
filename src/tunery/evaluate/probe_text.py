"""The text on which forgetting is measured: two domains that every Python brings along, so nothing is downloaded.

`documentation` is English technical prose, the language reference in `pydoc_data.topics`; `code` is the source of a fixed
list of standard-library modules. Both depend on the Python version, so a probe carries the SHA-256 of its text: two
figures compare when the hashes are equal, and before and after of one run are always the same text.

What the training saw is left out. The rule is the usual one for contamination: a piece that shares any 13 words in a row
with a training text is dropped (Brown et al. 2020, arXiv:2005.14165, appendix C), words being compared without case and
punctuation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunery.errors import InputError, RunError

PIECE = 2000
"""Characters of a piece, about: 500 to 700 tokens, which fits the context of every model, and gives the bootstrap many rows."""

SHINGLE = 13
"""Words in a row that mark a text as seen."""

MODULES = (
    "argparse", "ast", "base64", "bdb", "calendar", "cmd", "codecs", "colorsys", "configparser", "contextlib", "copy", "csv",
    "dataclasses", "difflib", "email/message", "enum", "fileinput", "fractions", "ftplib", "functools", "gettext", "glob", "gzip",
    "heapq", "html/parser", "http/client", "http/cookiejar", "http/server", "imaplib", "inspect", "ipaddress", "json/decoder",
    "json/encoder", "logging/handlers", "mailbox", "mimetypes", "optparse", "pdb", "pickle", "pickletools", "plistlib", "pprint",
    "queue", "random", "sched", "selectors", "shelve", "shlex", "shutil", "smtplib", "socketserver", "statistics", "string",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "traceback", "typing", "unittest/case",
    "unittest/mock", "urllib/parse", "urllib/request", "uuid", "warnings", "wave", "weakref", "xml/dom/minidom", "xmlrpc/client",
)  # fmt: skip
"""Modules of pure Python that 3.11 to 3.14 have in one file each; one that a machine lacks is passed over."""


@dataclass(frozen=True)
class ProbeText:
    """The chosen pieces of each domain. `excluded` counts the pieces that were left out because the training saw them.

    `short` names the domains with less text than was asked for.
    """

    documents: Mapping[str, tuple[str, ...]]
    sha256: str
    excluded: Mapping[str, int]
    short: tuple[str, ...] = ()


def documents(domain: str) -> list[str]:
    """All pieces of a domain, each about 2,000 characters, cut at line borders; no paragraph comes twice.

    Raises InputError for an unknown domain, and RunError when this Python came without the text.
    """
    if domain not in DOMAINS:
        raise InputError(f"there is no forgetting probe `{domain}`; known: {', '.join(DOMAINS)}")
    texts = DOMAINS[domain]()
    if not texts:
        mend = "install its whole standard library, or set evaluate.forgetting_tokens: 0"
        raise RunError(f"this Python has no text for the forgetting probe `{domain}`; {mend}")
    return [piece for text in texts for piece in _pieces(text)]


def utf8_bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def probe_documents(
    domains: Sequence[str], amount: int, exclude: Callable[[str], bool] | None = None, measure: Callable[[str], int] = utf8_bytes
) -> ProbeText:
    """Pieces of each domain, until `amount` of what `measure` counts is reached (UTF-8 bytes; tokens, when it counts those).

    The choice is the same everywhere for the same Python version: pieces are taken in the order of their hashes, which
    spreads them over all topics and modules. `exclude` (see `seen_filter`) says of a piece that it may not be used.
    """
    chosen: dict[str, tuple[str, ...]] = {}
    excluded: dict[str, int] = {}
    short = []
    for domain in domains:
        taken: list[str] = []
        left_out = have = 0
        for piece in sorted(documents(domain), key=_hash):
            if have >= amount:
                break
            if exclude is not None and exclude(piece):
                left_out += 1
                continue
            taken.append(piece)
            have += measure(piece)
        chosen[domain], excluded[domain] = tuple(taken), left_out
        if have < amount:
            short.append(domain)
    digest = hashlib.sha256()
    for domain in domains:
        for piece in chosen[domain]:
            digest.update(f"{domain}\0{piece}\0".encode())
    return ProbeText(chosen, digest.hexdigest(), excluded, tuple(short))


def seen_filter(training_texts: Iterable[str], candidates: Iterable[str] | None = None) -> Callable[[str], bool]:
    """A function that says of a candidate piece whether it shares 13 words in a row with any training text.

    `candidates` are the pieces that it will be asked about, by default those of every domain. Memory grows with them, not
    with the training texts, which are read once as a stream. The function raises ValueError for a text that is no candidate.
    """
    pieces = list(candidates) if candidates is not None else [piece for domain in DOMAINS for piece in documents(domain)]
    vocabulary: dict[str, int] = {}
    shingles_of: dict[str, set[tuple[int, ...]]] = {}
    for piece in pieces:
        shingles_of[piece] = set(_shingles([vocabulary.setdefault(w, len(vocabulary)) for w in _words(piece)]))
    wanted = set().union(*shingles_of.values())
    seen: set[tuple[int, ...]] = set()
    for text in training_texts:
        seen.update(s for s in _shingles([vocabulary.get(w) for w in _words(text)]) if s in wanted)

    def is_seen(piece: str) -> bool:
        if piece not in shingles_of:
            raise ValueError("this text was not among the candidates that the filter was made for")
        return not seen.isdisjoint(shingles_of[piece])

    return is_seen


def _topics() -> list[str]:
    """The topics of the language reference, longest first; a paragraph that an earlier one held is left out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    held: set[str] = set()
    texts = []
    for name in sorted(topics, key=lambda n: (-len(topics[n]), n)):
        paragraphs = []
        for paragraph in topics[name].split("\n\n"):
            if paragraph.strip() not in held:
                held.add(paragraph.strip())
                paragraphs.append(paragraph)
        texts.append("\n\n".join(paragraphs))
    return texts


def _modules() -> list[str]:
    import sysconfig

    library = Path(sysconfig.get_path("stdlib"))
    files = (library / f"{name}.py" for name in sorted(MODULES))
    return [file.read_text(encoding="utf-8") for file in files if file.is_file()]


DOMAINS: Mapping[str, Callable[[], list[str]]] = {"documentation": _topics, "code": _modules}


def _pieces(text: str) -> Iterator[str]:
    piece, size = [], 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= PIECE:
            yield "".join(piece)
            piece, size = [], 0
    if size >= PIECE // 2:  # a shorter rest would be a row of little weight
        yield "".join(piece)


def _hash(piece: str) -> str:
    return hashlib.sha256(piece.encode("utf-8")).hexdigest()


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _shingles(words: Sequence[int | None]) -> Iterator[tuple[int, ...]]:
    """Every 13 known words in a row; a word that no candidate holds (None) breaks the row, which makes most texts quick to pass."""
    start = 0
    for end, word in enumerate(words):
        if word is None:
            start = end + 1
        elif end - start + 1 >= SHINGLE:
            yield tuple(words[end - SHINGLE + 1 : end + 1])  # type: ignore[arg-type]  # no None is in this stretch
