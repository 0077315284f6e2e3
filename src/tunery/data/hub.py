"""Hub data sets: `org/name`, `org/name:split`, `org/name/config:split`, streamed through the `datasets` library.

Nothing is downloaded whole. A hub that cannot be reached is said within half a minute.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tunery.data.validate import ROW_KEYS
from tunery.errors import DataError, InputError, MissingExtraError
from tunery.models.hub import ANSWER_SECONDS, within

_IDENTIFIER = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.\[\]%:+-]+))?")


def is_identifier(source: str) -> bool:
    """Whether the text has the form of a hub data set's name."""
    return _IDENTIFIER.fullmatch(source) is not None


def revision(source: str) -> str:
    """The commit that the data set's name stands for at this moment: what a cache of it is keyed by.

    Raises MissingExtraError when `datasets` is not installed, InputError when the hub or the data set cannot be reached.
    """
    _library()
    from huggingface_hub import HfApi

    name, _, _ = _parts(source)
    try:
        info = within(ANSWER_SECONDS, lambda: HfApi().dataset_info(name, timeout=10))
    except Exception as e:  # httpx, hub and offline-mode errors share no base class
        reason = (str(e).strip().splitlines() or [""])[0][:160] or e.__class__.__name__
        raise InputError(
            f"{source}: there is no such file, and the data set could not be reached on the hub ({reason}); "
            "check the name and the connection, or download it and name the file"
        ) from None
    return str(info.sha)


def read(source: str, problem: Callable[[DataError], None]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(row number from 1, mapping) for each row of the data set's split (`train` unless named)."""
    datasets = _library()
    name, config, split = _parts(source)
    commit = revision(source)
    number = 0
    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=True, revision=commit)
        for row in rows:
            number += 1
            known = {k: v for k, v in row.items() if k in ROW_KEYS}
            yield number, known or row
    except DataError:
        raise
    except Exception as e:
        reason = (str(e).strip().splitlines() or [""])[0][:200] or e.__class__.__name__
        problem(
            DataError(source, number + 1 if number else None, f"the data set cannot be read ({reason}); check its configuration and split")
        )


def _parts(source: str) -> tuple[str, str | None, str]:
    found = _IDENTIFIER.fullmatch(source)
    if found is None:
        raise InputError(f"{source}: a hub data set is named org/name, org/name:split or org/name/config:split")
    return found["id"], found["config"], found["split"] or "train"


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError('a hub data set needs the `datasets` library: pip install "tunery[hub-data]"') from None
    return datasets
