"""An ONNX model folder for onnxruntime-genai: made by its model builder, run by any of its languages, without Python or torch.

The adapter is always merged first: the builder's own way for adapters knows LoRA alone, and exports others silently wrong.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from tunery.errors import InputError, MissingExtraError, RunError
from tunery.export.folder import export_folder, write_proof
from tunery.export.head_onnx import export_head
from tunery.export.merged import merge, save
from tunery.export.probes import genai_reproduces, verify_probes
from tunery.export.proof import folder_size, prove_held_out
from tunery.export.source import ExportSource
from tunery.infer.onnx_engine import OnnxEngine
from tunery.infer.torch_engine import TorchEngine
from tunery.models.load import load_tokenizer
from tunery.recipe import Options as _Options
from tunery.run import write_text

SUMMARY = "a folder for ONNX Runtime: fp32, int8 or int4 weights"

BUILDER_OPTIONS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    # Blocks of 32 with a zero point each. SmolLM2-135M, 256 positions, against the builder's default: KL 0.0052 against 0.0061.
    "int8": ("algo_config=rtn", "is_symmetric=false"),
    # The same, and 8 bits for the output head and for the layers that llama.cpp's Q4_K_M also keeps finer. Measured in the same way:
    # KL 0.214 against 0.505, greedy_match 0.77 against 0.64, for 117 MB against 90; the much slower k_quant gains nothing more (0.214).
    "int4": ("algo_config=rtn", "is_symmetric=false", "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8"),
}
NEEDED = ("onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai", "onnxscript")


class Options(_Options):
    """`precision` of the weights; activations and the key/value cache are float32 in all of them."""

    precision: Literal["fp32", "int8", "int4"] = "fp32"


def require(options: Options | None = None) -> None:
    """Raise MissingExtraError unless ONNX Runtime and its builder are installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"an ONNX export needs {' and '.join(missing)}, not installed; install with: pip install 'tunery[onnx]'")


def check_form(form: str, options: Options) -> None:
    """Raise InputError when a task of this form has no ONNX export with these options."""
    if form in ("sequence", "token") and options.precision != "fp32":
        raise InputError(
            f"export: a model with a head is exported to ONNX in fp32, not in {options.precision}: onnxruntime-genai's builder, which makes "
            "the smaller weights, knows generation alone; write `export: [onnx]`"
        )


def export(source: ExportSource, out: Path, options: Options) -> dict[str, Any]:
    """Merge, build, and prove what ONNX Runtime computes with the folder. See `Exporter.export`."""
    require()
    if source.head:
        check_form(source.head.kind, options)
        return export_head(source, out)
    who = f"onnx {options.precision}"
    with export_folder(out, source) as folder:
        started = source.start()
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.merged.", dir=out.parent) as work:
            model_folder = _float32_folder(source, Path(work), who, options.precision != "fp32")
            source.progress.show(f"{who}: building", 0)
            build(model_folder, folder, options.precision, Path(work) / "cache", out.with_name(f"{out.name}.build.log"))
        state_stop_ids(folder, source.stop_ids)
        verify_probes(source.probes, folder, who)
        entry = {"path": str(out), "precision": options.precision, **_prove(source, folder, options.precision, who)}
        entry |= {"seconds": round(time.monotonic() - started, 2), "bytes": folder_size(folder)}
        write_proof(folder, entry)
    return entry


def _float32_folder(source: ExportSource, work: Path, who: str, prove: bool) -> Path:
    """What the builder reads. `prove`: a quantised model's own figures cannot tell rounding from a wrong merge, so the merge is proven."""
    if source.adapter is None and source.trained is None:
        return source.base_folder
    model = merge(source)
    if prove:
        engine = TorchEngine(model, load_tokenizer(source.base_folder), source.stop_ids)
        source.reference.compare(engine, f"{who}, before rounding", source.progress).require_same(f"{who}, before rounding")
    folder = work / "model"
    save(model, source, folder, "float32")
    return folder


def _prove(source: ExportSource, folder: Path, precision: str, who: str) -> dict[str, Any]:
    engine = OnnxEngine(folder)
    figures = source.reference.compare(engine, who, source.progress)
    if precision == "fp32":
        figures.require_same(who)
    found: dict[str, Any] = {
        "max_logit_difference": figures.max_logit_difference,
        "greedy_match": figures.greedy_match,
        "genai_tokenizer": genai_reproduces(source.probes, engine),
    }
    if precision != "fp32" and source.held_out is not None:
        found["held_out"] = source.held_out(engine)
        prove_held_out(found["held_out"], f"{who} (greedy_match {figures.greedy_match:.4f})")
    return found


def build(model_folder: Path, folder: Path, precision: str, cache: Path, log: Path) -> None:
    """Run onnxruntime-genai's model builder in a process of its own: it prints much, and its memory is free again afterwards.

    Raises RunError with what it said last; `log` then holds all of it.
    """
    # -P: a folder of the user's that is called like a library (a run has one called onnx) must not be imported for it.
    command = [sys.executable, "-P", "-m", "onnxruntime_genai.models.builder", "-i", str(model_folder), "-o", str(folder)]
    command += ["-p", precision, "-e", "cpu", "-c", str(cache)]
    if BUILDER_OPTIONS[precision]:
        command += ["--extra_options", *BUILDER_OPTIONS[precision]]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONIOENCODING": "utf-8"}
    with tempfile.TemporaryFile() as output:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
        if result.returncode == 0 and (folder / "genai_config.json").is_file() and (folder / "model.onnx").is_file():
            return
        output.seek(0)
        text = output.read().decode("utf-8", errors="replace").replace("\r", "\n")
    write_text(log, text)
    lines = [line.strip() for line in reversed(text.splitlines()) if line.strip()]
    # What it prints on its standard output is buffered, and may come after the error that ended it.
    error = next((line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b", line)), None)
    last = error or next(iter(lines), f"exit code {result.returncode}")
    raise RunError(f"onnxruntime-genai's model builder could not export this model in {precision}: {last[:300]} (all it said: {log})")


def state_stop_ids(folder: Path, stop_ids: tuple[int, ...]) -> None:
    """Every stop token of training into genai_config.json, so that any program that runs the folder stops by itself."""
    file = folder / "genai_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    own = config["model"].get("eos_token_id")
    known = own if isinstance(own, list) else [] if own is None else [own]
    ids = list(dict.fromkeys([*stop_ids, *known]))
    config["model"]["eos_token_id"] = ids if len(ids) > 1 else ids[0]
    if config["model"].get("pad_token_id") is None:
        config["model"]["pad_token_id"] = ids[0]
    write_text(file, json.dumps(config, indent=4) + "\n")
