"""What the hub says of a model that is not downloaded: its config.json, its tokenizer, and the headers of its weights, but no weights.

A safetensors file begins with the names, types and shapes of its tensors, so a range request for its first bytes gives their number
(https://huggingface.co/docs/safetensors/metadata_parsing).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tunery.errors import MissingModelError
from tunery.models import hub
from tunery.models.cache import Progress
from tunery.models.catalogue import Entry

SECONDS = 25.0
"""For everything but the tokenizer: config.json, and a header of each of up to some tens of files."""
TOGETHER = 8
"""Headers that are asked for at once."""
TOKENIZER_BYTES = 64_000_000
"""A tokenizer that is larger is not fetched for a plan; the largest known are about half of it."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


@dataclass(frozen=True)
class Remote:
    """A model on the hub."""

    hub_id: str
    folder: Path
    """A local folder with its config.json and, where `tokenizer`, its tokenizer and chat template."""
    tokenizer: bool
    values: Mapping[str, int]
    """How many values its weights hold, by safetensors' names of types (`BF16`, `F32`)."""
    file_bytes: int
    """Bytes of its weight files."""

    @property
    def parameters(self) -> int:
        return sum(self.values.values())


def look(hub_id: str, revision: str | None = None, entry: Entry | None = None, progress: Progress | None = None) -> Remote:
    """Ask the hub. Raises MissingModelError within 30 s when it cannot be reached, does not give the model out, or has not what is needed."""
    if progress:
        progress(f"asking the hub for the shapes of {hub_id}")
    try:
        found, files, sha = hub.within(SECONDS, lambda: _ask(hub_id, revision))
    except MissingModelError:
        raise
    except Exception as e:
        raise MissingModelError(hub.why_not(e, hub_id, revision, entry)) from None
    return Remote(**found, tokenizer=_fetch_tokenizer(hub_id, sha, files, progress))


def _ask(hub_id: str, revision: str | None) -> tuple[dict[str, Any], dict[str, int], str | None]:
    """(what `Remote` holds but the tokenizer, the size of every file, the commit)."""
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi()
    info = api.model_info(hub_id, revision=revision, files_metadata=True, timeout=10)
    files = {f.rfilename: f.size or 0 for f in info.siblings or ()}
    weights = [name for name in files if hub.wanted(name) and name.endswith(".safetensors")]
    for what, there in (("config.json", "config.json" in files), ("safetensors weights", bool(weights))):
        if not there:
            raise MissingModelError(f"the model {hub_id} has no {what} on the hub, and Tunery reads no other form; choose another model")
    config = hf_hub_download(hub_id, "config.json", revision=info.sha or revision, etag_timeout=10)

    def header(name: str) -> dict[str, int]:
        tensors = api.parse_safetensors_file_metadata(hub_id, name, revision=info.sha or revision, timeout=10).tensors.values()
        counted: Counter[str] = Counter()
        for t in tensors:
            counted[t.dtype] += math.prod(t.shape)
        return dict(counted)

    values: Counter[str] = Counter()
    with ThreadPoolExecutor(TOGETHER) as pool:
        for counted in pool.map(header, weights):
            values.update(counted)
    found = {"hub_id": hub_id, "folder": Path(config).parent, "values": dict(values), "file_bytes": sum(files[n] for n in weights)}
    return found, files, info.sha or revision


def _fetch_tokenizer(hub_id: str, sha: str | None, files: Mapping[str, int], progress: Progress | None) -> bool:
    """Whether the tokenizer is now beside config.json. A plan without it is less exact, so failing is no error."""
    from huggingface_hub import hf_hub_download

    chosen = [name for name in TOKENIZER_FILES if name in files]
    size = sum(files[name] for name in chosen)
    if "tokenizer.json" not in files or size > TOKENIZER_BYTES:
        return False
    if progress:
        progress(f"fetching its tokenizer ({size / 1e6:.1f} MB)")
    try:
        for name in chosen:
            hub.within(hub.ANSWER_SECONDS, partial(hf_hub_download, hub_id, name, revision=sha, etag_timeout=10))
    except Exception:
        return False
    return True
