"""A finished export's folder, with its card, to the Hugging Face hub (or whatever HF_ENDPOINT names). Private unless it is said otherwise.

This is a place and not a form: it sends a folder that an exporter made and proved. Token and name are checked before training.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import InputError, RunError, TuneryError
from tunery.export.folder import PROOF
from tunery.models.hub import ANSWER_SECONDS, within
from tunery.progress import Progress
from tunery.recipe import Options as _Options

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SUMMARY = "an export's folder with its card, to the Hugging Face hub"
NAME = "hub"


class Options(_Options):
    """`repo`: org/name. `form`: which export goes there; None: the adapter, or the merged model where there is no adapter.

    `private`: who sees a repository that is made now; one that is public already is refused unless this is false.
    """

    repo: str
    form: str | None = None
    private: bool = True


def require(options: Options) -> None:
    """Raise InputError, in one sentence, unless the hub would take a push: the name, the token, and whether a public repository is meant.

    Asks the hub two questions and changes nothing there.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(options.repo)
    except HFValidationError:
        raise InputError(f"export.hub: {options.repo!r} is not a name that the hub takes; write it as org/name") from None
    if options.repo.count("/") != 1:
        raise InputError(f"export.hub: {options.repo!r} does not say whose repository it is; write it as org/name")
    api = _api()
    try:
        who: Any = within(ANSWER_SECONDS, api.whoami)
        if (((who.get("auth") or {}).get("accessToken") or {}).get("role")) == "read":
            raise InputError("export.hub: HF_TOKEN may only read; make a token that may write, and set HF_TOKEN to it")
        there: Any = within(ANSWER_SECONDS, lambda: api.model_info(options.repo))
    except RepositoryNotFoundError:
        return  # it is made when it is needed
    except InputError:
        raise
    except Exception as e:
        if isinstance(e, HfHubHTTPError) and e.response.status_code == 401:
            raise InputError("export.hub: the hub does not know this HF_TOKEN; set it to a token that may write") from None
        raise InputError(
            f"export.hub: the hub cannot be asked about {options.repo} ({why(e)}); mend that, or leave `hub` out of `export`"
        ) from None
    _check_private(there, options)


def push(folder: Path, options: Options, message: str, progress: Progress) -> dict[str, Any]:
    """Send the folder's files; `{"repo", "url", "commit", "private"}`. The proof's file stays here: it names folders of this machine.

    Raises RunError when the hub does not take it; what is in `folder` is untouched, and pushing again sends only what is missing.
    """
    api = _api()
    progress.say(f"pushing {folder.name} to {options.repo} ({'private' if options.private else 'public'})")
    try:
        url = api.create_repo(options.repo, private=options.private, exist_ok=True)
        there = api.model_info(options.repo)
        _check_private(there, options)
        commit = api.upload_folder(repo_id=options.repo, folder_path=folder, commit_message=message, ignore_patterns=[PROOF, ".*"])
    except TuneryError:
        raise
    except Exception as e:
        raise RunError(
            f"the hub did not take {options.repo} ({why(e)}); the model is in {folder}, push it with `tunery export RUN --to hub:{options.repo}`"
        ) from None
    return {"repo": options.repo, "url": str(url), "commit": commit.oid, "private": bool(there.private)}


def _api() -> HfApi:
    """The hub with a token. Raises InputError when there is none."""
    from huggingface_hub import HfApi, constants, get_token

    if constants.is_offline_mode():
        raise InputError("export.hub: HF_HUB_OFFLINE is set, so nothing can be pushed; unset it, or leave `hub` out of `export`")
    token = get_token()
    if not token:
        raise InputError("export.hub: a push needs a token that may write; set HF_TOKEN to it, or run `hf auth login`")
    return HfApi(token=token)


def _check_private(there: Any, options: Options) -> None:
    if options.private and not there.private:
        raise InputError(
            f"export.hub: {options.repo} is public and the push is private unless told otherwise; "
            f"name another repository, or write {{hub: {{repo: {options.repo}, private: false}}}}"
        )


def why(error: BaseException) -> str:
    """A failure in one line with what caused it, without the token."""
    from huggingface_hub import get_token

    line = (str(error).strip().splitlines() or [""])[0][:300]
    for secret in (get_token(), os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN")):
        if secret:
            line = line.replace(secret, "…")
    said = f"{error.__class__.__name__}: {line}" if line else error.__class__.__name__
    return f"{said}, because of {why(error.__cause__)}" if error.__cause__ is not None else said
