"""Code that loads what lies in a folder, as its card shows it. The tests run every one of these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunery.card import base
from tunery.report.words import mapping

QUESTION = "Hello, who are you?"
_HEADS = {"sequence": "AutoModelForSequenceClassification", "token": "AutoModelForTokenClassification"}


def code(report: Mapping[str, Any], form: str | None, folder: Path, repo: str | None = None) -> str:
    """A fenced block of code and, above it, what to install. `repo`: from there instead of from this folder."""
    exports = list(mapping(report.get("exports")))
    if form is None:  # a run directory: by its most useful export
        form = next((f for f in ("merged", "adapter", "onnx", "gguf") if f in exports), None)
        if form is None:
            return "Nothing was exported; `tunery export` makes a model that other programs load."
        return code(report, form, folder / form, repo).replace('"."', json.dumps(form))
    make = {"adapter": _adapter, "merged": _merged, "onnx": _onnx, "gguf": _gguf}.get(form)
    if make is None:
        return "See the files of this folder."
    install, lines = make(report, folder, json.dumps(repo or "."))
    return f"```\npip install {install}\n```\n\n```python\n{lines.strip()}\n```"


def _auto(report: Mapping[str, Any]) -> str:
    return _HEADS.get(str(mapping(report.get("head")).get("kind")), "AutoModelForCausalLM")


def _adapter(report: Mapping[str, Any], folder: Path, where: str) -> tuple[str, str]:
    auto, known = _auto(report), base.of(report)
    written = json.dumps(known.written)
    comment = "" if known.hub_id else "  # the folder of the model that was trained"
    labels = mapping(report.get("head")).get("labels") or ()
    heads = f", num_labels={len(labels)}" if labels else ""
    return "transformers peft", (
        f"from peft import PeftModel\nfrom transformers import {auto}, AutoTokenizer\n\n"
        f"base = {auto}.from_pretrained({written}{heads}){comment}\n"
        f"model = PeftModel.from_pretrained(base, {where}).eval()\n"
        f"tokenizer = AutoTokenizer.from_pretrained({where})\n\n{_use(report, folder)}"
    )


def _merged(report: Mapping[str, Any], folder: Path, where: str) -> tuple[str, str]:
    auto = _auto(report)
    return "transformers torch", (
        f"from transformers import {auto}, AutoTokenizer\n\n"
        f"model = {auto}.from_pretrained({where}).eval()\ntokenizer = AutoTokenizer.from_pretrained({where})\n\n{_use(report, folder)}"
    )


def _use(report: Mapping[str, Any], folder: Path) -> str:
    """What to do with `model` and `tokenizer`: write an answer, or name classes."""
    head = mapping(report.get("head"))
    labels = json.dumps(list(head.get("labels") or ()), ensure_ascii=False)
    if head.get("kind") == "sequence":
        return f'labels = {labels}\nlogits = model(**tokenizer("{QUESTION}", return_tensors="pt")).logits\nprint(labels[logits.argmax()])'
    if head.get("kind") == "token":
        return (
            f'labels = {labels}\nencoded = tokenizer("{QUESTION}", return_tensors="pt")\nlogits = model(**encoded).logits[0]\n'
            "for token, label in zip(encoded.tokens(), logits.argmax(-1)):\n    print(token, labels[label])"
        )
    return (
        f"{_prompt(folder)}answer = model.generate(**prompt, max_new_tokens=100)\n"
        'print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))'
    )


def _prompt(folder: Path) -> str:
    if not has_template(folder):
        return f'prompt = tokenizer("{QUESTION}", return_tensors="pt")\n'
    return (
        f'messages = [{{"role": "user", "content": "{QUESTION}"}}]\n'
        'prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)\n'
    )


def has_template(folder: Path) -> bool:
    """Whether the tokenizer in a folder has a chat template: in a file of its own, in its settings, or in a GGUF file."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    for model in folder.glob("*.gguf"):
        from gguf import GGUFReader

        return "tokenizer.chat_template" in GGUFReader(model).fields
    file = folder / "tokenizer_config.json"
    return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8")).get("chat_template"))


def _onnx(report: Mapping[str, Any], folder: Path, where: str) -> tuple[str, str]:
    fetch, path = "", where
    if where != '"."':
        fetch, path = f"from huggingface_hub import snapshot_download\n\nfolder = snapshot_download({where})\n", "folder"
    head = mapping(report.get("head"))
    if head:
        labels = json.dumps(list(head.get("labels") or ()), ensure_ascii=False)
        shown = "labels[logits[0].argmax()]" if head.get("kind") == "sequence" else "[labels[i] for i in logits[0].argmax(-1)]"
        return "onnxruntime transformers", (
            f"{fetch}import onnxruntime\nfrom transformers import AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained({path})\n"
            f'session = onnxruntime.InferenceSession({path} + "/model.onnx")\n'
            f'encoded = tokenizer("{QUESTION}", return_tensors="np")\n'
            "logits = session.run(None, {i.name: encoded[i.name] for i in session.get_inputs()})[0]\n"
            f"labels = {labels}\nprint({shown})"
        )
    messages = json.dumps(json.dumps([{"role": "user", "content": QUESTION}]))
    prompt = f"tokenizer.apply_chat_template({messages}, add_generation_prompt=True)" if has_template(folder) else json.dumps(QUESTION)
    return "onnxruntime-genai", (
        f"{fetch}import onnxruntime_genai as og\n\nmodel = og.Model({path})\ntokenizer = og.Tokenizer(model)\n"
        f"prompt = tokenizer.encode({prompt})\nsettings = og.GeneratorParams(model)\n"
        "settings.set_search_options(max_length=len(prompt) + 100)\n"
        "generator = og.Generator(model, settings)\ngenerator.append_tokens(prompt)\n"
        "while not generator.is_done():\n    generator.generate_next_token()\n"
        "print(tokenizer.decode(generator.get_sequence(0)[len(prompt) :]))"
    )


def _gguf(report: Mapping[str, Any], folder: Path, where: str) -> tuple[str, str]:
    file = next((f.name for f in sorted(folder.glob("*.gguf"))), "model.gguf")
    return "transformers torch gguf accelerate", (
        "# llama.cpp itself: llama-cli -m " + file + "\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({where}, gguf_file={json.dumps(file)}).eval()\n"
        f"tokenizer = AutoTokenizer.from_pretrained({where}, gguf_file={json.dumps(file)})\n\n{_use(report, folder)}"
    )
