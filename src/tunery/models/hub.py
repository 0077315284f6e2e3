"""Models from the hub: what is in its local cache is used as it is, and what is not there is downloaded once.

Only what a model needs is fetched: config, tokenizer, template and safetensors, never pickled weights. Whether the hub
answers is known within 20 s, name look-up and retries included, because the question runs in a thread that is left behind.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from tunery.errors import MissingModelError
from tunery.models.cache import Progress
from tunery.models.catalogue import Entry

# `*` also matches `/`, so folders inside the repository (onnx/, original/) are left out by the second list.
FETCHED = ["*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "model*.safetensors"]
LEFT = ["*/*", "consolidated*"]
ANSWER_SECONDS = 20.0

T = TypeVar("T")


def download(hub_id: str, revision: str | None = None, entry: Entry | None = None, progress: Progress | None = None) -> Path:
    """The local folder of a hub model, downloading what is missing.

    A complete copy in the hub's own cache is used without asking the hub. Raises MissingModelError within 30 s when the
    hub cannot be reached or does not give the model out; a download that breaks off is continued by the next call.
    """
    local = cached(hub_id, revision)
    if local is not None:
        return local
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = within(ANSWER_SECONDS, lambda: HfApi().model_info(hub_id, revision=revision, files_metadata=True, timeout=10))
    except Exception as e:
        raise MissingModelError(why_not(e, hub_id, revision, entry)) from None
    files = {f.rfilename: f.size or 0 for f in info.siblings or () if wanted(f.rfilename)}
    if not any(name.endswith(".safetensors") for name in files):
        raise MissingModelError(
            f"the model {hub_id} has no safetensors weights on the hub, and Tunery reads no others; choose another model"
        )
    size = sum(files.values())
    free = _free_bytes()
    if size > free:
        raise MissingModelError(
            f"the model {hub_id} is {_gigabytes(size)} and the hub's cache has {_gigabytes(free)} free; make room, or set HF_HOME"
        )
    if progress:
        progress(f"downloading {hub_id} ({_gigabytes(size)})")
    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=FETCHED,
                ignore_patterns=LEFT,
                tqdm_class=_bar(hub_id, size, progress),
                etag_timeout=10,
            )
        )
    except Exception as e:
        raise MissingModelError(f"the download of {hub_id} broke off ({_reason(e)}); run again, it goes on where it stopped") from None


def within(seconds: float, ask: Callable[[], T]) -> T:
    """The answer of `ask`, or TimeoutError after `seconds`; no timeout of an HTTP library bounds the look-up of a name."""
    answer: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(ask())
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if answer:
        return answer[0]
    raise failure[0] if failure else TimeoutError(f"no answer in {seconds:.0f} s")


def cached(hub_id: str, revision: str | None) -> Path | None:
    """The folder of a complete copy in the hub's own cache: config, all weights, tokenizer; else None. The hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from tunery.errors import InputError
    from tunery.models.source import check_folder

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=FETCHED, ignore_patterns=LEFT, local_files_only=True))
        check_folder(folder)
    except (LocalEntryNotFoundError, InputError, ValueError):
        return None
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"))
    return folder if has_tokenizer else None


def wanted(name: str) -> bool:
    """Whether a file of a repository belongs to what a model needs."""
    return any(fnmatch(name, p) for p in FETCHED) and not any(fnmatch(name, p) for p in LEFT)


def why_not(error: Exception, hub_id: str, revision: str | None, entry: Entry | None) -> str:
    """In one sentence, why the hub did not give a model, and the mend."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    size = f" ({_gigabytes(entry.download_bytes)})" if entry else ""
    if isinstance(error, HFValidationError):
        return f"the model {hub_id!r} is not a valid hub id; write it as org/name"
    if isinstance(error, RevisionNotFoundError):
        return f"the model {hub_id} has no revision {revision!r}; name a branch, a tag or a commit of it"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError) or status == 403:
        return f"the model {hub_id}{size} is gated: accept its licence on its hub page, then set HF_TOKEN to your token and run again"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        gated = "it asks for a licence to be accepted" if entry and entry.gated else "check the spelling, or it is private"
        return f"the hub gives no model {hub_id}{size} to this user: {gated}, in which case set HF_TOKEN to a token that may read it"
    line = f"hf download {hub_id}" + (f" --revision {revision}" if revision else "")
    return (
        f"the model {hub_id}{size} is not on this machine and the hub could not be reached ({_reason(error)}): "
        f"connect once and run again or `{line}`, or give a local folder"
    )


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    text = (str(error).strip().splitlines() or [""])[0][:200]
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        secret = os.environ.get(name)
        if secret:
            text = text.replace(secret, "…")
    return f"{error.__class__.__name__}: {text}" if text else error.__class__.__name__


def _free_bytes() -> int:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _bar(hub_id: str, size: int, progress: Progress | None) -> type[Any]:
    """A tqdm that draws nothing and tells `progress` of the bytes, at most every two seconds."""
    import io

    from tqdm.auto import tqdm

    class Quiet(tqdm):  # type: ignore[type-arg]
        told = 0.0

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            now = time.monotonic()
            if progress and self.unit == "B" and str(self.desc).startswith(("Reconstruct", "Download")) and now - Quiet.told > 2:
                Quiet.told = now
                progress(f"downloading {hub_id}: {_gigabytes(int(self.n))} of {_gigabytes(size)}")
            return shown

    return Quiet
