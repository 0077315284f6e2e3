"""The rooms' one-way rule: code imports only from rooms above its own, so a room can be read without those below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tunery"

# From the ground up. A room may import from those before it, and from itself. The order is DESIGN's table; beside it:
ORDER = [
    "errors",
    "refusal",  # why two choices do not go together; every part declares some
    "progress",  # a line on the screen; knows nothing of what it shows
    "machine",  # cores, memory, GPUs; precision, planning and doctor all ask it
    "recipe",
    "run",
    "scenarios",
    "models",
    "data",
    "metrics",  # knows no model; above tasks, which name their metrics
    "tasks",
    "kernels",  # what surrounds the products of a step; methods and the engines compute with it
    "methods",
    "sharding",  # what a process holds of the model and its optimiser
    "train",
    "profile",  # where time and memory went; looks on while the loop trains
    "infer",
    "evaluate",
    "export",
    "trackers",  # where a run's figures are also sent
    "combinations",  # what goes with what; derived from what the parts declare
    "resolve",
    "inputs",  # what a run began with: data, hashes
    "launch",  # training, in this process or several
    "plan",
    "report",
    "card",  # the model card that goes with a run and each export
    "publish",  # cards beside models, and folders to the hub
    "pipeline",
    "importers",  # other tools' configurations; nothing of ours builds on it
    "compute",
    "table",
    "service",
    "console",
    "doctor",  # looks at everything that is installed; nothing builds on it
]
# The doors: they may call every room, and no room may call them.
DOORS = {"cli", "__init__"}

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "onnxruntime",
    "onnxruntime_genai",
    "onnx",
    "datasets",
    "sklearn",
    "scipy",
    "matplotlib",
    "sacrebleu",
    "pandas",
    "bitsandbytes",
    "deepspeed",
    "seqeval",
    "mlflow",
    "wandb",
    "tensorboard",
    "xllamacpp",
)


def _files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def _room(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imported_rooms(tree: ast.AST, package: tuple[str, ...]) -> set[tuple[str, int]]:
    """(room, line) of every import of tunery in a file, also inside functions; relative imports are resolved."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "tunery":
                found.add((parts[1] if len(parts) > 1 else "__init__", node.lineno))
    return found


def _violations(file: Path, tree: ast.AST, known: set[str]) -> list[str]:
    room = _room(file)
    if room in DOORS:
        return []
    package = ("tunery", *file.relative_to(SOURCE).parts[:-1])
    wrong = []
    for other, line in sorted(_imported_rooms(tree, package)):
        if other == room or (other not in known and other != "cli"):
            continue  # itself, or a name of tunery's own __init__ such as __version__
        if other not in ORDER or ORDER.index(other) > ORDER.index(room):
            wrong.append(f"{file.relative_to(SOURCE)}:{line}: {room} imports from {other}, which comes after it")
    return wrong


@pytest.mark.parametrize("file", _files(), ids=lambda f: str(f.relative_to(SOURCE)))
def test_a_room_imports_only_from_rooms_above_it(file: Path) -> None:
    known = {_room(f) for f in _files()}
    assert _violations(file, ast.parse(file.read_text(encoding="utf-8")), known) == []


def test_every_room_has_its_place() -> None:
    assert {_room(file) for file in _files()} - DOORS - set(ORDER) == set(), "a new room needs a line in ORDER"


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("from tunery.train.loop import train", True),
        ("def f():\n    import tunery.cli.main", True),
        ("from tunery import pipeline", True),
        ("from ..train import loop", True),
        ("from tunery.errors import InputError\nfrom tunery.models.load import load_model", False),
        ("from . import rows\nfrom tunery import __version__", False),
    ],
)
def test_the_rule_is_noticed_when_broken(code: str, wrong: bool) -> None:
    known = {_room(f) for f in _files()} | {"train", "pipeline", "cli", "models"}
    assert bool(_violations(SOURCE / "data" / "example.py", ast.parse(code), known)) is wrong


def _made_of_torch(file: Path) -> bool:
    """Layers, attention and the loop define torch classes or are read at a sitting; others import them inside functions."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = [a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names] + [
        n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.module
    ]
    return any(n.split(".")[0] == "torch" for n in names)


def test_only_training_and_layers_are_made_of_torch() -> None:
    found = {str(f.relative_to(SOURCE)) for f in _files() if _made_of_torch(f)}
    assert all(f.startswith(("train/", "kernels/")) or f.rpartition("/")[2].startswith("_") for f in found), found


def test_importing_every_other_module_stays_light() -> None:
    modules = [
        ".".join(("tunery", *f.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        for f in _files()
        if not _made_of_torch(f)
    ]
    modules = [m for m in modules if not m.endswith("__main__")]
    code = (
        "import importlib, sys\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(module)\n"
        f"    heavy = [h for h in {HEAVY!r} if h in sys.modules]\n"
        "    assert not heavy, f'{module} imports {heavy}'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
