"""The folder that an export writes: new, whole, and loadable by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunery.errors import InputError
from tunery.export.source import ExportSource
from tunery.run import new_folder, write_text

PROOF = "proof.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


@contextmanager
def export_folder(out: Path, source: ExportSource) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends well. An earlier export (or the run's own adapter) there is replaced.

    Raises InputError when `out` holds anything else: nobody's files are deleted.
    """
    own = source.adapter is not None and out.resolve() == source.adapter.resolve()
    if out.exists() and not own and not (out / PROOF).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: there is something else here already; choose another --out, or remove it first")
    with new_folder(out) as folder:
        yield folder


def write_proof(folder: Path, entry: dict[str, Any]) -> None:
    """The entry, beside the files that it is about; it also marks the folder as an export."""
    write_text(folder / PROOF, json.dumps(entry, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def copy_tokenizer(base: Path, folder: Path) -> None:
    """The tokenizer and chat template exactly as they came with the model: written again, they might lose what a server reads."""
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    if (base / "additional_chat_templates").is_dir():
        shutil.copytree(base / "additional_chat_templates", folder / "additional_chat_templates", dirs_exist_ok=True)


def state_padding(folder: Path, pad: int) -> None:
    """Name the pad token in tokenizer_config.json where the tokenizer has none: the model with its head was trained with this one."""
    from tunery.models.load import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if tokenizer.pad_token_id is None:
        file = folder / "tokenizer_config.json"
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        write_text(file, json.dumps({**settings, "pad_token": tokenizer.convert_ids_to_tokens(pad)}, indent=2, ensure_ascii=False) + "\n")


def write_generation_config(base: Path, folder: Path, stop_ids: tuple[int, ...]) -> None:
    """The model's own generation settings, with every stop token of training in them: any runtime then stops by itself."""
    file = base / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    own = settings.get("eos_token_id")
    known = own if isinstance(own, list) else [] if own is None else [own]
    settings["eos_token_id"] = list(dict.fromkeys([*stop_ids, *known]))
    settings.setdefault("pad_token_id", stop_ids[0])
    write_text(folder / "generation_config.json", json.dumps(settings, indent=2) + "\n")
