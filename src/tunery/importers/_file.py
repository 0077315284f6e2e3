"""Reading a configuration file of another tool: YAML or JSON, safely, whatever is in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tunery.errors import InputError

LARGEST = 2**20
"""Bytes. No hand-written configuration is larger; what is larger is data."""
MOST = 20_000
"""Values in a file, aliases unfolded: a few lines of nested aliases can stand for billions."""
DEEPEST = 40

_HELM = re.compile(r"(?m)^(\s*[\w.-]+:[ \t]+)(\{\{[^{}\n]*\}\})[ \t]*$")
"""A Helm placeholder as a whole value, `namespace: {{ .Release.Namespace }}`, which is not YAML before it is filled in."""


def load(path: Path) -> dict[str, Any]:
    """The mapping in a file. Several Kubernetes objects in one file come back as {kind: object}, `kind 2` for the second of a kind.

    Raises InputError in one sentence: no such file, too large, not UTF-8 text, not YAML or JSON, a key that is there twice, not a mapping.
    """
    content = _text(path)
    try:
        documents = _documents(content, path)
    except RecursionError:
        raise InputError(f"{path}: nested too deep; this is not a training configuration") from None
    documents = [d for d in documents if d is not None]
    if not documents:
        raise InputError(f"{path}: the file is empty; name a training configuration")
    for document in documents:
        if not isinstance(document, Mapping):
            raise InputError(f"{path}: a training configuration is a mapping of keys, this is {_form(document)}; name another file")
    if len(documents) == 1:
        return _plain(documents[0], path)
    found: dict[str, Any] = {}
    for document in documents:
        kind = document.get("kind")
        if not isinstance(kind, str) or "apiVersion" not in document:
            raise InputError(f"{path}: the file holds several documents; keep one training configuration in it")
        same = sum(name.split(" ")[0] == kind for name in found)
        found[f"{kind} {same + 1}" if same else kind] = document
    return _plain(found, path)


def beside(folder: Path, name: str) -> dict[str, Any] | None:
    """The mapping in the file that a configuration in `folder` names, or None.

    Tools name files from the folder where they are started, so the folders around the configuration are looked through as well.
    """
    for base in (folder, *list(folder.parents)[:4]):
        try:
            if (base / name).is_file():
                return load(base / name)
        except (OSError, ValueError):  # an InputError is a ValueError
            return None
    return None


def load_text(text: str, source: str) -> dict[str, Any]:
    """The mapping in a text that a configuration holds within itself. Raises InputError."""
    documents = [d for d in _documents(text, Path(source)) if d is not None]
    if len(documents) != 1 or not isinstance(documents[0], Mapping):
        raise InputError(f"{source}: one mapping of keys is needed here")
    return _plain(documents[0], Path(source))


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise InputError(f"{path}: this is a folder; name a file in it")
        with path.open("rb") as f:
            content = f.read(LARGEST + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: the file cannot be read ({e.__class__.__name__}); check its name and permissions") from None
    if len(content) > LARGEST:
        raise InputError(f"{path}: larger than {LARGEST >> 20} MiB, so this is no training configuration; name another file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: byte 0x{content[e.start]:02x} is not UTF-8; a training configuration is a text file") from None
    return text


def _documents(text: str, path: Path) -> list[Any]:
    if text.lstrip()[:1] == "{":
        try:
            return [json.loads(text, object_pairs_hook=_pairs)]
        except json.JSONDecodeError as e:
            if path.suffix.lower() == ".json":
                raise InputError(f"{path}:{e.lineno}: not valid JSON ({e.msg[:1].lower()}{e.msg[1:]}); mend the line") from None
        except ValueError as e:
            raise InputError(f"{path}: {e}") from None
    try:
        return _yaml(text)
    except yaml.YAMLError as e:
        mark, problem = getattr(e, "problem_mark", None), getattr(e, "problem", None) or str(e).splitlines()[0]
        if isinstance(e, yaml.constructor.ConstructorError) and _HELM.search(text):
            return _documents(_HELM.sub(r'\1"\2"', text), path)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not valid YAML ({str(problem)[:120]}); mend the line") from None
    except (ValueError, OverflowError) as e:  # a number or a date that Python cannot hold
        raise InputError(f"{path}: not valid YAML ({str(e)[:120]}); mend the value") from None


def _yaml(text: str) -> list[Any]:
    return list(yaml.load_all(text, Loader=_Loader))


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, which YAML's own loader overwrites without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key `{key.value[:60]}` is there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [k for k, _ in pairs]
        raise ValueError(f"the key `{next(k for k in names if names.count(k) > 1)[:60]}` is there twice; keep one")
    return found


def _plain(value: Any, path: Path) -> dict[str, Any]:
    """The same values as text, numbers, lists and mappings with text keys."""
    count = 0

    def plain(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > MOST or depth > DEEPEST:
            what = f"more than {MOST} values" if count > MOST else f"more than {DEEPEST} levels"
            raise InputError(f"{path}: {what}, so this is no training configuration; name another file")
        if isinstance(value, Mapping):
            return {str(k): plain(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [plain(v, depth + 1) for v in value]
        return value if value is None or isinstance(value, str | bool | int | float) else str(value)

    found: dict[str, Any] = plain(value, 0)
    return found


def _form(value: Any) -> str:
    return {str: "text", list: "a list", bool: "true or false"}.get(type(value), f"a {type(value).__name__}")
