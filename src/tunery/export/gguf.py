"""A GGUF file for llama.cpp and what is built on it (Ollama, LM Studio): made by llama.cpp's own converter, then read back.

What is proven: the merge, in float32; that the file read by transformers holds the merged weights (exactly so, rounded where the
precision is 16 bits); its own greedy_match; and, where llama.cpp can be run here, that its tokens and its answers are the trained model's.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunery.errors import InputError, MissingExtraError, ProofError, RunError
from tunery.export import llama_cpp, llama_cpp_server
from tunery.export.folder import export_folder, write_proof
from tunery.export.merged import merge, save
from tunery.export.probes import verify_probes
from tunery.export.proof import TOKENS, folder_size, prove_held_out
from tunery.export.source import ExportSource
from tunery.models import gguf_file
from tunery.models.load import load_model, quiet_transformers
from tunery.recipe import Options as _Options
from tunery.refusal import Refusal
from tunery.run import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMMARY = "a GGUF file for llama.cpp: fp32, fp16, bf16, q8_0 or q4_k_m weights"

_HEADS = "llama.cpp gives a head's scores to its reranking route alone, and the proof of this export compares next tokens"
_SOURCE = "https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md (POST /reranking)"
REFUSES = (
    Refusal({"model": ("encoder",)}, _HEADS, _SOURCE, "export: [onnx]"),
    Refusal({"task": ("classify", "tag")}, _HEADS, _SOURCE, "export: [onnx]"),
)

OUTTYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "q8_0": "q8_0", "q4_k_m": "f16"}
"""What the converter is asked for; llama-quantize goes on from 16 bits, as llama.cpp's own guide does."""
ROUNDED = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Options(_Options):
    """`precision` of the matrices; norms are float32 in all of them. q4_k_m needs llama.cpp's compiled llama-quantize."""

    precision: Literal["fp32", "fp16", "bf16", "q8_0", "q4_k_m"] = "fp16"


def require(options: Options | None = None) -> None:
    """Raise MissingExtraError unless llama.cpp's converter is here, and llama-quantize where the precision needs it."""
    llama_cpp.require()
    if options is not None and options.precision == "q4_k_m" and llama_cpp.quantizer() is None:
        raise MissingExtraError(
            f"gguf: q4_k_m needs llama.cpp's llama-quantize; put it on PATH, set {llama_cpp.FOLDER} to a built llama.cpp, or choose q8_0"
        )


def export(source: ExportSource, out: Path, options: Options) -> dict[str, Any]:
    """Merge, convert, read back and prove. See `Exporter.export`."""
    require(options)
    if source.head:
        raise InputError(f"a model with a head has no GGUF export: {_HEADS}; choose onnx")
    who = f"gguf {options.precision}"
    with export_folder(out, source) as folder:
        started = source.start()
        file = folder / f"model-{options.precision}.gguf"
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.work.", dir=out.parent) as work:
            model = merge(source)
            if (source.adapter or source.trained) and options.precision != "fp32":
                before = f"{who}, before rounding"
                source.reference.compare(source.engine(model), before, source.progress).require_same(before)
            merged = Path(work) / "model"
            save(model, source, merged, "float32")
            source.progress.show(f"{who}: converting", 0)
            convert(merged, file, options.precision, out.with_name(f"{out.name}.convert.log"))
            entry: dict[str, Any] = {"path": str(out), "file": file.name, "precision": options.precision}
            read = read_weights(file, merged) if llama_cpp.has_runtime() else _read_all(source, file, Path(work) / "back", who)
            entry |= _prove(source, model, read, options.precision, who)
        entry |= _by_llama_cpp(source, file, options.precision, who)
        entry |= {"seconds": round(time.monotonic() - started, 2), "bytes": folder_size(folder)}
        write_proof(folder, entry)
    return entry


def convert(model: Path, file: Path, precision: str, log: Path) -> None:
    """Run llama.cpp's converter, and its quantizer for q4_k_m, each in a process of its own.

    Raises RunError with what it said last; `log` then holds all of it.
    """
    script = llama_cpp.require()
    made = file if precision != "q4_k_m" else file.with_suffix(".f16.tmp")
    program = [sys.executable, str(script)] if script.suffix == ".py" else [str(script)]
    _run([*program, str(model), "--outfile", str(made), "--outtype", OUTTYPES[precision]], "converter", precision, log)
    if precision == "q4_k_m":
        quantizer = llama_cpp.quantizer()
        assert quantizer is not None  # require() asked
        _run([str(quantizer), str(made), str(file), "Q4_K_M"], "llama-quantize", precision, log)
        made.unlink()
    if not file.is_file():
        raise RunError(f"llama.cpp's converter wrote no {file.name}; look at what it needs with `{' '.join(program)} --help`")


def _run(command: list[str], program: str, precision: str, log: Path) -> None:
    # Without network: the converter asks the hub for a model's card. Without our path: it brings a gguf library of its own.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False)
    if result.returncode == 0:
        return
    text = (result.stdout + result.stderr).decode("utf-8", errors="replace").replace("\r", "\n")
    write_text(log, text)
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), f"exit code {result.returncode}")
    raise RunError(f"llama.cpp's {program} could not make {precision} of this model: {last[:300]} (all it said: {log})")


def read_weights(file: Path, merged: Path) -> PreTrainedModel:
    """The weights in the file as transformers dequantises them, in a float32 model of the merged folder's own configuration.

    transformers' reader leaves some settings out (a head size that is not the family's); llama.cpp's own run proves the file's.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet_transformers():
        config = AutoConfig.from_pretrained(merged, local_files_only=True)
        try:
            read: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, config=config, local_files_only=True
            )
        except (ValueError, KeyError, NotImplementedError, RuntimeError) as e:
            reason = (str(e).splitlines() or [repr(e)])[0][:300]
            raise RunError(f"transformers cannot read {file.name} back ({reason}), so it cannot be proven and was not kept") from None
    return read.eval()


def _read_all(source: ExportSource, file: Path, back: Path, who: str) -> PreTrainedModel:
    """Where llama.cpp cannot be run: everything in the file, settings and tokenizer too, as transformers reads it.

    Raises ProofError when that tokenizer gives other ids: transformers may read it wrong, but then nothing says that it is right.
    """
    back.mkdir()
    gguf_file.convert(file, back)
    try:
        verify_probes(source.probes, back, who)
    except ProofError as e:
        raise ProofError(f"{e}, as transformers reads the file; to ask llama.cpp itself: pip install 'tunery[gguf]'") from None
    source.progress.say("gguf: llama.cpp is not installed, so it was not asked itself; pip install 'tunery[gguf]' brings it")
    return load_model(back)


def _prove(source: ExportSource, model: PreTrainedModel, read: PreTrainedModel, precision: str, who: str) -> dict[str, Any]:
    """The figures of the file's weights."""
    if precision in ROUNDED:
        require_rounding(model, read, ROUNDED[precision], who)
    engine = source.engine(read)
    figures = source.reference.compare(engine, who, source.progress)
    if precision == "fp32":
        figures.require_same(who)
    found: dict[str, Any] = {"max_logit_difference": figures.max_logit_difference, "greedy_match": figures.greedy_match}
    if precision not in ROUNDED and source.held_out is not None:
        found["held_out"] = source.held_out(engine)
        prove_held_out(found["held_out"], f"{who} (greedy_match {figures.greedy_match:.4f})")
    return found


def require_rounding(model: PreTrainedModel, read: PreTrainedModel, dtype: str, who: str) -> None:
    """Raises ProofError unless every tensor that was read is the merged one, or exactly its rounding to `dtype`."""
    import torch

    expected, found = model.state_dict(), read.state_dict()
    if expected.keys() != found.keys():
        raise ProofError(f"{who}: the file has other weights ({sorted(expected.keys() ^ found.keys())[0]} first); the export was not kept")
    for name, tensor in expected.items():
        whole = tensor.float()
        if not (torch.equal(found[name], whole) or torch.equal(found[name], whole.to(getattr(torch, dtype)).float())):
            raise ProofError(f"{who}: {name} in the file is not the merged one; the export was not kept")


def _by_llama_cpp(source: ExportSource, file: Path, precision: str, who: str) -> dict[str, Any]:
    """What llama.cpp itself answers, when it can be run here.

    Its arithmetic is its own (activations are rounded to the weights' type), so only float32 files must answer alike: one of the
    positions may differ, where two tokens are equally likely to within rounding.
    """
    if not llama_cpp.has_runtime():
        return {}
    prompts = source.reference.prompts[: llama_cpp_server.PROMPTS]
    context = max([*(len(p) for p in prompts), *(len(p["ids"]) for p in source.probes)]) + TOKENS + 8
    try:
        with llama_cpp_server.serving(file, context) as server:
            plain = [probe for probe in source.probes if not probe.get("tools")]
            tools = [probe for probe in source.probes if probe.get("tools")]
            if not llama_cpp_server.reproduces(server, plain):
                raise ProofError(f"{who}: llama.cpp's template or tokenizer gives other ids than in training; the export was not kept")
            match = llama_cpp_server.greedy_match(server, source.reference, source.stop_ids, source.progress)
            found = {"version": server.version, "tokenizer": True, "greedy_match": match, "prompts": len(prompts)}
            if tools:
                found["tools"] = llama_cpp_server.reproduces(server, tools)
    except OSError as e:
        raise RunError(f"{who}: llama.cpp gave no answer ({e.__class__.__name__}: {e}); the export was not kept") from None
    if precision == "fp32" and match < 1 - 1.5 / (TOKENS * len(prompts)):
        raise ProofError(f"{who}: llama.cpp's own answers are not the trained model's: greedy_match {match:.4f}; the export was not kept")
    return {"llama_cpp": found}
