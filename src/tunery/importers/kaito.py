"""KAITO's tuning: `training_config.yaml`, the ConfigMap that holds it, and the Workspace that names model and data (v1beta1).

The keys are those of `presets/workspace/tuning/text-generation/cli.py`. A Workspace without a ConfigMap uses KAITO's own template for
its method, which is written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from tunery.importers import _adapter, _sharding, _trainer
from tunery.importers._adapter import Lora
from tunery.importers._draft import draft
from tunery.importers._file import load_text
from tunery.importers._reader import Reader
from tunery.importers._trainer import CODE, LOADING, Trainer

SUMMARY = "KAITO's training_config.yaml, ConfigMap or tuning Workspace"
_SECTIONS = ("ModelConfig", "QuantizationConfig", "LoraConfig", "TrainingArguments", "DataCollator", "DatasetConfig")
_FILE = "training_config.yaml"
_OBJECT = "needless here because it names or places the Kubernetes object"
_WHERE = "no counterpart because where a run executes is not the recipe's: see `tunery submit --on kaito`"

PRESETS = {
    "llama-3.1-8b-instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "llama-3.3-70b-instruct": "meta-llama/Llama-3.3-70B-Instruct",
    "falcon-7b": "tiiuae/falcon-7b",
    "falcon-7b-instruct": "tiiuae/falcon-7b-instruct",
    "falcon-40b": "tiiuae/falcon-40b",
    "falcon-40b-instruct": "tiiuae/falcon-40b-instruct",
    "mistral-7b": "mistralai/Mistral-7B-v0.3",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.3",
    "ministral-3-3b-instruct": "mistralai/Ministral-3-3B-Instruct-2512",
    "ministral-3-8b-instruct": "mistralai/Ministral-3-8B-Instruct-2512",
    "ministral-3-14b-instruct": "mistralai/Ministral-3-14B-Instruct-2512",
    "phi-2": "microsoft/phi-2",
    "phi-3-mini-4k-instruct": "microsoft/Phi-3-mini-4k-instruct",
    "phi-3-mini-128k-instruct": "microsoft/Phi-3-mini-128k-instruct",
    "phi-3-medium-4k-instruct": "microsoft/Phi-3-medium-4k-instruct",
    "phi-3-medium-128k-instruct": "microsoft/Phi-3-medium-128k-instruct",
    "phi-3.5-mini-instruct": "microsoft/Phi-3.5-mini-instruct",
    "phi-4-mini-instruct": "microsoft/Phi-4-mini-instruct",
    "phi-4": "microsoft/phi-4",
    "qwen2.5-coder-7b-instruct": "Qwen/Qwen2.5-Coder-7B-Instruct",
    "qwen2.5-coder-32b-instruct": "Qwen/Qwen2.5-Coder-32B-Instruct",
    "deepseek-r1-distill-qwen-14b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
    "deepseek-r1-distill-llama-8b": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "gemma-3-4b-instruct": "google/gemma-3-4b-it",
    "gemma-3-27b-instruct": "google/gemma-3-27b-it",
    "gpt-oss-20b": "openai/gpt-oss-20b",
    "gpt-oss-120b": "openai/gpt-oss-120b",
}
"""KAITO's presets and the hub ids behind them, as its `supported_models.yaml` gives them."""

_MODEL: Mapping[str, str] = {
    "trust_remote_code": CODE,
    "revision": "no counterpart because a recipe names a model, not a commit; download that commit and name the folder",
    "chat_template": "no counterpart because the model's own chat template is used, in training as in serving; check that it is the same",
    "device_map": _trainer.DEVICES,
    "*": "needless here because Tunery finds and loads the model in its own way",
}
_QUANTIZATION: Mapping[str, str] = {
    "bnb_4bit_compute_dtype": "needless here because products are in train.precision",
    "quant_method": "needless here because a base is quantised by bitsandbytes",
    "llm_int8_*": _adapter.EIGHT_BIT,
}
_LORA: Mapping[str, str] = {
    "modules_to_save": "no counterpart because beside the adapter only a task's head and method.train_tokens are learned",
    "bias": "no counterpart because an adapter learns no biases",
    "task_type": "needless here because the task says it",
    "layers_*": "no counterpart because targets are names of layers; write them out in method.targets",
    "*_pattern": "no counterpart because all adapters of a run have one rank and one alpha",
    "fan_in_fan_out": "needless here because the model's class follows from its own configuration",
}
_COLUMNS = "no counterpart because columns are known by fixed names; write rows with `messages`, `prompt` and `completion`, or `text`"


def recognises(mapping: Mapping[str, Any]) -> int:
    """The file's own head, or a Kubernetes object of KAITO's."""
    if "training_config" in mapping:
        return 3
    if mapping.get("kind") == "ConfigMap":
        data = mapping.get("data")
        return 3 if isinstance(data, Mapping) and _FILE in data else 0
    if mapping.get("kind") == "Workspace":
        return 3 if "tuning" in mapping or str(mapping.get("apiVersion", "")).startswith("kaito.") else 0
    inner = [v for k, v in mapping.items() if k in ("Workspace", "ConfigMap") and isinstance(v, Mapping)]
    return max((recognises(v) for v in inner), default=len(set(_SECTIONS) & set(mapping)))


def convert(reader: Reader) -> dict[str, Any]:
    """The recipe of whichever of Workspace, ConfigMap and `training_config` the file holds. Raises InputError for a Workspace that serves."""
    reader.leave_known({"PersistentVolume*": _WHERE, "Secret*": _WHERE, "Service*": _WHERE, "Namespace*": _WHERE})
    workspace, config = _parts(reader)
    tuning = workspace.inside("tuning") if workspace else None
    if workspace and tuning is not None and not tuning.mapping:
        raise workspace.error("tuning", "this Workspace serves a model and tunes none, so there is no recipe in it")
    settings = {name: (config or reader).inside(name) for name in _SECTIONS}
    model, train, kind = _named(tuning, settings, reader)
    recipe = draft(model, train, reader)
    if config is None:
        reader.note("the file names no training settings: KAITO's own template for the method is written (rank 8, alpha 8, one row a step)")
    recipe["method"] = _method(settings, kind, config is None)
    collator = settings["DataCollator"]
    collator.leave_known({"mlm": "needless here because a model predicts the next token", "*": _trainer.BATCHES})
    _share(settings["DatasetConfig"], recipe, stated=config is not None)
    arguments = settings["TrainingArguments"]
    _sharding.write(recipe, _sharding.deepspeed(arguments) or _sharding.fsdp(arguments, recipe))
    _trainer.precision(settings["ModelConfig"], recipe, dtypes=("torch_dtype",), no=("bf16", "fp16"))
    if "precision" not in recipe["train"]:
        _trainer.precision(arguments, recipe)
    else:
        for key in ("bf16", "fp16"):
            arguments.leave(key, "needless here because the model's torch_dtype says it")
    Trainer("KAITO", rows=8 if config else 1).read(arguments, recipe)
    settings["ModelConfig"].leave_known(_MODEL)
    settings["QuantizationConfig"].leave_known(_QUANTIZATION)
    settings["LoraConfig"].leave_known(_LORA)
    return recipe


def _parts(reader: Reader) -> tuple[Reader | None, Reader | None]:
    """The Workspace and the reader of the six sections, each None when the file holds none."""
    if reader.peek("kind") == "Workspace":
        return _object(reader), None
    if reader.peek("kind") == "ConfigMap":
        return None, _unfolded(_object(reader))
    workspace = _object(reader.inside("Workspace")) if "Workspace" in reader else None
    if "ConfigMap" in reader:
        return workspace, _unfolded(_object(reader.inside("ConfigMap")))
    if "training_config" in reader:
        return workspace, reader.inside("training_config")
    return workspace, None if workspace else reader


def _object(reader: Reader) -> Reader:
    reader.leave_known({"apiVersion": _OBJECT, "kind": _OBJECT, "metadata": _OBJECT, "resource": _WHERE, "status": _OBJECT})
    return reader


def _unfolded(config_map: Reader) -> Reader:
    """The sections in the text of a ConfigMap, which takes the text's place so that its keys are accounted for."""
    data = config_map.inside("data")
    text = data.peek(_FILE)
    if not isinstance(text, str):
        raise data.error(_FILE, "the text of a training_config.yaml is needed here")
    inner = load_text(text, f"{config_map.source}: {_FILE}")
    data.replace(_FILE, inner)
    whole = data.inside(_FILE)
    return whole.inside("training_config") if "training_config" in whole else whole


def _named(tuning: Reader | None, settings: dict[str, Reader], reader: Reader) -> tuple[str | None, str | None, str]:
    model: str | None = settings["ModelConfig"].text("pretrained_model_name_or_path")
    path = settings["DatasetConfig"].text("dataset_path")
    train, kind = path, "lora"
    if tuning is not None:
        preset = tuning.inside("preset")
        name = preset.text("name")
        if name:
            model = model or PRESETS.get(name, name)
            if name not in PRESETS and model == name:
                reader.note(f"model: {name} is a preset of KAITO's that is not known here; write its hub id")
        preset.leave_known({"accessMode": _WHERE, "presetOptions": _WHERE})
        kind = (tuning.text("method") or "lora").lower()
        train = _input(tuning.inside("input"), reader) or path
        tuning.leave_known(
            {"config": "no counterpart because the ConfigMap is another file; import that one, or both in one file", "output": _WHERE}
        )
    if path and path.startswith("/"):
        reader.note(f"data: {path} is a path inside KAITO's container; write where the file is here")
    return model, train, kind


def _input(source: Reader, reader: Reader) -> str | None:
    urls = source.texts("urls")
    source.leave_known(
        {
            "image": "no counterpart because data comes from a file or the hub, not from a container image; take the file out of it",
            "volumeSource": "no counterpart because data comes from a file or the hub; write where the volume is mounted",
            "imagePullSecrets": _WHERE,
            "name": _OBJECT,
        }
    )
    if not urls:
        return None
    if len(urls) > 1:
        source.leave("urls", "no counterpart for all of it because one file is written; list the others in data.train")
    name = PurePosixPath(urlsplit(urls[0]).path).name or "train.jsonl"
    reader.note(f"data: download {urls[0].split('?')[0]} and keep it beside the recipe as {name}")
    return name


def _method(settings: dict[str, Reader], kind: str, template: bool) -> dict[str, Any]:
    quantization, peft, model = settings["QuantizationConfig"], settings["LoraConfig"], settings["ModelConfig"]
    four = bool(quantization.flag("load_in_4bit")) or bool(model.flag("load_in_4bit")) or (template and kind == "qlora")
    for section in (quantization, model):
        if section.flag("load_in_8bit"):
            section.leave("load_in_8bit", _adapter.EIGHT_BIT)
    kind_of = quantization.text("bnb_4bit_quant_type")
    if four and kind_of != "nf4" and not template:
        quantization.leave("bnb_4bit_quant_type", "no counterpart because 4-bit values are NF4 here")
        if kind_of is None:
            peft.note("method: 4-bit values are NF4 here; KAITO's default is FP4")
    rank = peft.integer("r", low=1) or 8
    lora = Lora(
        rank=rank,
        alpha=peft.number("lora_alpha") or 8,
        dropout=peft.number("lora_dropout") or 0.0,
        targets=_adapter.targets(peft, "target_modules", "PEFT picks layers by the architecture"),
        rslora=bool(peft.flag("use_rslora")),
        dora=bool(peft.flag("use_dora")),
        four_bit=four,
        double=bool(quantization.flag("bnb_4bit_use_double_quant")) or template,
    )
    _adapter.start(peft, "init_lora_weights", lora)
    _adapter.loftq(peft, "loftq_config", lora)
    return lora.method()


def _share(dataset: Reader, recipe: dict[str, Any], stated: bool) -> None:
    """`train_test_split` is the share that is trained on; what is held out of it is validated on."""
    share = dataset.number("train_test_split")
    if share is not None and share > 1:
        raise dataset.error("train_test_split", f"a share from 0 to 1 is needed, not {share:g}")
    if share is None and stated:
        recipe["data"]["valid"] = 0.2
        dataset.note("data.valid: 0.2 is KAITO's default (train_test_split 0.8)")
    elif share is not None and 0 < share < 1:
        recipe["data"]["valid"] = round(1 - share, 6)
    columns = {"context_column": "prompt", "response_column": "completion", "messages_column": "messages"}
    for key, name in columns.items():
        fixed = dataset.peek(key) == name or (key == "response_column" and dataset.peek(key) == "text")
        dataset.leave(key, "needless here because rows are known by their own keys" if fixed else _COLUMNS)
    if dataset.peek("response_column") == "text" and "context_column" not in dataset and "messages_column" not in dataset:
        dataset.take("response_column")
        recipe["task"] = "text"
    dataset.leave_known(
        {
            "shuffle_dataset": _trainer.BATCHES,
            "shuffle_seed": "no counterpart because one seed serves the whole run (train.seed)",
            "dataset_extension": LOADING,
        }
    )
