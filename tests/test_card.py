"""The card says what the report says, is valid metadata for the hub, and its code runs."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from exports import OPTIONS, random_adapter, source_of

from tunery import card
from tunery.export import merged
from tunery.export.source import ExportSource
from tunery.recipe import from_mapping
from tunery.run import Run

REPORT: dict[str, Any] = {
    "schema": 1, "model": "smollm2-135m", "method": "lora", "task": "chat", "status": "succeeded",
    "data": {"train_rows": 2001, "trained_tokens": 251_904, "supervised_tokens": 7_912, "truncated_rows": 4, "leaked_rows": 2},
    "train": {"seconds": 412.7, "steps": 63, "tokens_per_second": 610.4, "peak_memory_bytes": 2_310_000_000,
              "trainable_parameters": 4_884_480, "total_parameters": 134_515_008, "first_loss": 3.412, "final_loss": 0.381},
    "evaluation": {
        "rows": 400, "primary": "accuracy",
        "before": {"accuracy": {"value": 0.4525, "low": 0.404, "high": 0.501}},
        "after": {"accuracy": {"value": 0.8375, "low": 0.8, "high": 0.87}, "macro_f1": {"value": 0.8331, "low": 0.79, "high": 0.87}},
        "difference": {"accuracy": {"difference": 0.385, "low": 0.33, "high": 0.44, "p_value": 0.0002}},
    },
    "exports": {
        "adapter": {"path": "adapter", "precision": "fp32", "max_logit_difference": 0.0, "greedy_match": 1.0, "bytes": 19_600_000},
        "merged": {"path": "merged", "precision": "bf16", "max_logit_difference": 0.031, "greedy_match": 0.9981, "bytes": 269_000_000},
    },
    "environment": {"python": "3.11.7", "torch": "2.13.0", "cpu": "Some CPU", "device": "cpu, 2 threads", "seed": 3},
    "command": "tunery train /home/me/secret-project/recipe.yaml",
    "inputs": {"model": {"name": "smollm2-135m", "sha256": {"config.json": "aa", "model.safetensors": "bb11"}},
               "data": {"data/train.jsonl": "cc22", "/home/me/secret-project/test.jsonl": "dd33"}},
}  # fmt: skip


def _card(report: dict[str, Any], form: str | None, folder: Path, **more: Any) -> Any:
    from huggingface_hub import ModelCard

    return ModelCard(card.text(report, form, folder, **more))


def test_the_metadata_is_what_the_hub_reads(tmp_path: Path) -> None:
    data = _card(REPORT, "adapter", tmp_path).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.license == "apache-2.0"
    assert data.library_name == "peft"
    assert data.pipeline_tag == "text-generation"
    assert data.base_model_relation == "adapter"
    assert data.metrics == ["accuracy", "f1"]
    assert data.model_name == "SmolLM2-135M-Instruct lora chat"
    accuracy = next(r for r in data.eval_results if r.metric_type == "accuracy")
    assert accuracy.metric_value == 0.8375
    assert accuracy.dataset_name == "test.jsonl, 400 rows"
    assert accuracy.metric_name == "Accuracy after training (95 % bounds 80.0 to 87.0)"
    assert _card(REPORT, "merged", tmp_path).data.library_name == "transformers"
    assert _card(REPORT, "merged", tmp_path).data.base_model_relation == "finetune"


def test_it_says_what_the_report_says(tmp_path: Path) -> None:
    text = card.text(REPORT, "merged", tmp_path).replace("\u00a0", " ")
    for said in (
        "Accuracy rose from 45.2 % to 83.8 %",
        "| Accuracy | 45.2 % (40.4 to 50.1) | 83.8 % (80.0 to 87.0) | +38.5 points (33.0 to 44.0) | < 0.001 |",
        "| training rows | 2,001 |",
        "| time | 6 min 53 s |",
        "| loss of the last step | 0.381 |",
        "| merged | bf16 | 0.9981 | 0.031 | 269.0 MB |",
        "2 rows of the test data also stand in the training data",
        "4 rows of the training data were cut",
        "dequantised Q4_1: on its own weights the results may differ",
        "| seed | 3 |",
        "| base model, model.safetensors | `bb11` |",
        "| data, test.jsonl | `dd33` |",
    ):
        assert said in text, said
    assert "| adapter |" not in text, "the other forms have cards of their own"
    assert "secret-project" not in text


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for inner in value.values() for n in _numbers(inner)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_every_number_is_the_reports(tmp_path: Path) -> None:
    """Each number of the tables is a number of the report, rounded: no other source, and none mistyped."""
    known = _numbers(REPORT)
    scaled = [n * k for n in known for k in (1, 100, 1e-6, 1e-9)] + [412.7 // 60, 412.7 % 60]
    text = card.text(REPORT, "merged", tmp_path)
    table = [line for line in text.split("---\n", 2)[2].splitlines() if line.startswith("| ") and "`" not in line]
    cells = " ".join(line.split("|", 2)[2] for line in table if not line.startswith(("| python", "| torch", "| cpu", "| device")))
    found = re.findall(r"\d[\d,]*(?:\.\d+)?", cells.replace("SHA-256", "").replace("bf16", "").replace("< 0.001", ""))
    assert len(found) > 25
    for number in found:
        decimals = len(number.partition(".")[2])
        value = float(number.replace(",", ""))
        assert any(abs(abs(n) - value) <= 0.5001 * 10**-decimals for n in scaled), number


def test_a_run_without_evaluation_claims_nothing(tmp_path: Path) -> None:
    report = {**deepcopy(REPORT), "evaluation": None, "exports": {}}
    found = _card(report, None, tmp_path)
    assert "Trained, not evaluated" in found.text
    assert "## Proof" not in found.text
    assert found.data.eval_results is None
    assert "Nothing was exported" in found.text
    failed = card.text({**report, "status": "failed", "error": "the loss is nan"}, None, tmp_path)
    assert "The run failed" in failed


def test_a_local_base_is_told_by_its_last_name_and_no_licence_is_made_up(tmp_path: Path) -> None:
    report = {**deepcopy(REPORT), "model": "/home/me/secret-project/my-base"}
    found = _card(report, "adapter", tmp_path)
    assert found.data.base_model is None
    assert found.data.license is None
    assert "The licence of the base model is not known" in found.text
    assert 'from_pretrained("my-base")' in found.text
    assert "secret-project" not in str(found)
    known = _card({**report, "model": "Some-Org/other-model@main"}, "adapter", tmp_path)
    assert known.data.base_model == "Some-Org/other-model"


def test_every_folder_of_a_run_gets_its_card(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", from_mapping({"model": "smollm2-135m", "data": {"train": "a.jsonl"}}))
    assert card.write(run) == []
    run.write_json("report.json", REPORT)
    (run.path / "merged").mkdir()
    assert sorted(str(f.relative_to(run.path)) for f in card.write(run)) == ["README.md", "merged/README.md"]
    assert 'from_pretrained("merged")' in (run.path / "README.md").read_text(), "a run's card loads its export"
    assert 'from_pretrained(".")' in (run.path / "merged" / "README.md").read_text()
    assert 'from_pretrained("me/mine")' in card.text(REPORT, "merged", tmp_path, "me/mine")


def run_code(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a card's code prints, run where its folder is."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(code.replace("max_new_tokens=100", "max_new_tokens=8"), "card", "exec"), {})
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    return source_of(tiny_llama, random_adapter(tiny_llama, tmp_path_factory.mktemp("adapter"), std=0.2), count=3)


@pytest.mark.parametrize("form", ["adapter", "merged", "onnx"])
def test_the_code_that_loads_it_works(
    form: str, llama: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunery import export

    if form == "onnx":
        pytest.importorskip("onnxruntime_genai", reason="pip install 'tunery[onnx]'")
    exporter = export.get(form)
    entry = exporter.export(llama, tmp_path / form, exporter.Options())
    report = {**deepcopy(REPORT), "model": str(llama.base_folder)}
    file = card.write_into(tmp_path / form, report, form, entry)
    (tmp_path / form / llama.base_folder.name).symlink_to(llama.base_folder)
    said = run_code(file.read_text(), tmp_path / form, monkeypatch, capsys).strip()

    import torch

    from tunery.models.load import load_tokenizer

    tokenizer: Any = load_tokenizer(llama.base_folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello, who are you?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        assert llama.trained is not None
        model: Any = llama.trained()
        answer = model.generate(**prompt, max_new_tokens=100 if form == "onnx" else 8, do_sample=False)
    expected = tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert said[:20] == expected[:20]
    assert said


@pytest.mark.parametrize(("kind", "form"), [("sequence", "adapter"), ("sequence", "merged"), ("sequence", "onnx"), ("token", "merged")])
def test_the_code_of_a_head_works(
    kind: str, form: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    from tunery.models.load import load_tokenizer

    labels = ["sport", "weather", "news"]
    made: Any = AutoModelForSequenceClassification if kind == "sequence" else AutoModelForTokenClassification
    torch.manual_seed(0)
    base = made.from_pretrained(tiny_llama, num_labels=3)
    task = "SEQ_CLS" if kind == "sequence" else "TOKEN_CLS"
    tuned: Any = get_peft_model(base, LoraConfig(task_type=task, r=OPTIONS.rank, target_modules="all-linear", modules_to_save=["score"]))
    torch.nn.init.normal_(tuned.base_model.model.score.modules_to_save.default.weight)
    tuned.eval()
    tokenizer: Any = load_tokenizer(tiny_llama)
    encoded = tokenizer("Hello, who are you?", return_tensors="pt")
    found = tuned(**encoded).logits[0].argmax(-1)
    expected = labels[found] if kind == "sequence" else [f"{t} {labels[i]}" for t, i in zip(encoded.tokens(), found, strict=True)]
    folder = tmp_path / form
    if form == "adapter":
        tuned.save_pretrained(folder)
    else:
        whole = tuned.merge_and_unload()
        whole.save_pretrained(folder)
        if form == "onnx":
            pytest.importorskip("onnxruntime", reason="pip install 'tunery[onnx]'")
            from tunery.export.head_onnx import write_graph

            write_graph(whole, folder / "model.onnx")
    tokenizer.save_pretrained(folder)
    report = {
        **deepcopy(REPORT), "model": str(tiny_llama), "task": {"sequence": "classify", "token": "tag"}[kind],
        "head": {"kind": kind, "labels": labels},
    }  # fmt: skip
    file = card.write_into(folder, report, form)
    (folder / tiny_llama.name).symlink_to(tiny_llama)
    said = run_code(file.read_text(), folder, monkeypatch, capsys).strip()
    assert (said if kind == "sequence" else said.splitlines()) == expected
    assert _card(report, form, folder).data.pipeline_tag == {"sequence": "text-classification", "token": "token-classification"}[kind]


def test_a_model_without_a_template_is_shown_plain_text(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunery.models.load import load_tokenizer

    source = source_of(tiny_llama, None, count=2)
    merged.export(source, tmp_path / "merged", merged.Options())
    (tmp_path / "merged" / "chat_template.jinja").unlink()
    tokenizer_config = tmp_path / "merged" / "tokenizer_config.json"
    settings = json.loads(tokenizer_config.read_text())
    settings.pop("chat_template", None)
    tokenizer_config.write_text(json.dumps(settings))
    assert load_tokenizer(tmp_path / "merged").chat_template is None
    file = card.write_into(tmp_path / "merged", {**deepcopy(REPORT), "model": str(tiny_llama), "task": "text"}, "merged")
    assert "apply_chat_template" not in file.read_text()
    assert run_code(file.read_text(), tmp_path / "merged", monkeypatch, capsys).strip()
