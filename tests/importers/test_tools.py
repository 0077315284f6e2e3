"""Each tool's configuration becomes the recipe that it means, and every key of it is accounted for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from other_tools import CONFIGS, LEFT, RECIPES

from tunery import importers, methods, sharding, tasks
from tunery.errors import InputError
from tunery.importers import Imported, detect, read
from tunery.importers._file import load
from tunery.recipe import Recipe, from_mapping

SUFFIX = {"olive": ".json", "openai": ".json"}
TRACKS = "track" in Recipe.model_fields
SECTIONS = 'ConfigMap.data."training_config.yaml".training_config'


def imported(folder: Path, content: str | dict[str, Any], tool: str | None = None, name: str = "config.yaml") -> Imported:
    file = folder / name
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return read(file, tool)


def config(tool: str, folder: Path) -> dict[str, Any]:
    """The configuration as a mapping; KAITO's sections stand alone, since the ConfigMap holds them as text."""
    (folder / "c.yaml").write_text(CONFIGS[tool])
    mapping = load(folder / "c.yaml")
    return yaml.safe_load(mapping["ConfigMap"]["data"]["training_config.yaml"]) if tool == "kaito" else mapping


@pytest.mark.parametrize("tool", CONFIGS)
def test_the_recipe_is_what_the_file_means(tmp_path: Path, tool: str) -> None:
    found = imported(tmp_path, CONFIGS[tool], name=f"config{SUFFIX.get(tool, '.yaml')}")
    assert found.tool == tool
    recipe = {k: v for k, v in found.recipe.items() if k != "track"}
    assert recipe == RECIPES[tool]
    from_mapping(found.recipe)


@pytest.mark.parametrize("tool", CONFIGS)
def test_what_is_left_over_is_listed_by_kind(tmp_path: Path, tool: str) -> None:
    found = imported(tmp_path, CONFIGS[tool], name=f"config{SUFFIX.get(tool, '.yaml')}")
    for kind, keys in LEFT[tool].items():
        expected = {key.replace("T.", f"{SECTIONS}.", 1) if key.startswith("T.") else key for key in keys.split()}
        if TRACKS:
            expected -= {"integrations[0].type", "integrations[0].wandb.project"}
        assert {item.key for item in found.left_over if item.reason.startswith(kind)} == expected, kind
    for item in found.left_over:
        assert item.reason == "not understood" or item.reason.startswith(("no counterpart because ", "needless here because ")), item


@pytest.mark.parametrize("tool", CONFIGS)
def test_the_choices_in_the_recipe_exist_with_these_options(tmp_path: Path, tool: str) -> None:
    recipe = from_mapping(imported(tmp_path, CONFIGS[tool], name=f"config{SUFFIX.get(tool, '.yaml')}").recipe)
    methods.get(recipe.method.name).Options.model_validate(recipe.method.options)
    tasks.get(recipe.task.name).Options.model_validate(recipe.task.options)
    sharding.get(recipe.sharding.name).Options.model_validate(recipe.sharding.options)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        for n, inner in enumerate(value):
            yield from leaves(inner, (*path, n))
    else:
        yield path


# Values that say what Tunery does anyway: reading them is all there is to do.
USUAL = {
    "llamafactory": {"do_train", "stage", "finetuning_type", "quantization_method", "eval_strategy"},
    "axolotl": {"load_in_8bit", "load_in_4bit", "type", "optimizer", "lr_scheduler", "path", "fsdp"},
    "trl": {"optim", "loss_type", "eval_strategy"},
    "kaito": {"bnb_4bit_quant_type"},
    "olive": {"name"},
    "openai": set(),
    "llamafactory_v1": {"name", "target_modules"},
}


@pytest.mark.parametrize("tool", CONFIGS)
def test_every_key_that_is_not_listed_has_an_effect(tmp_path: Path, tool: str) -> None:
    """Without the key the recipe is another one, or the notes are, or the file is refused."""
    mapping = config(tool, tmp_path)
    whole = imported(tmp_path, mapping, tool)
    listed = {item.key for item in whole.left_over}
    idle = set()
    for leaf in leaves(mapping):
        names = ["".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in leaf[:n]).lstrip(".") for n in range(1, len(leaf) + 1)]
        if any(name in listed for name in names):
            continue
        less = copy.deepcopy(mapping)
        part = less
        for step in leaf[:-1]:
            part = part[step]
        del part[leaf[-1]]
        try:
            other = imported(tmp_path, less, tool)
        except InputError:
            continue
        if (other.recipe, other.notes) == (whole.recipe, whole.notes):
            idle.add(leaf[-1])
    assert idle <= USUAL[tool]


@pytest.mark.parametrize("tool", CONFIGS)
def test_a_key_that_nobody_knows_is_listed_wherever_it_stands(tmp_path: Path, tool: str) -> None:
    mapping = config(tool, tmp_path)
    places = [(), *sorted({leaf[:n] for leaf in leaves(mapping) for n in range(1, len(leaf))}, key=str)]
    for place in places:
        more = copy.deepcopy(mapping)
        part = more
        for step in place:
            part = part[step]
        if not isinstance(part, dict):
            continue
        part["zzz_unknown"] = 1
        if len(place) == 1 and place[0] == "passes":  # only groups of keys can stand here
            with pytest.raises(InputError, match="zzz_unknown: keys with values are needed"):
                imported(tmp_path, more, tool)
            continue
        found = imported(tmp_path, more, tool)
        name = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")
        around = [name[: len(name) - cut] for cut in range(len(name) + 1)]
        keys = {item.key for item in found.left_over}
        assert any(key.endswith("zzz_unknown") for key in keys) or keys & set(around), place


def test_the_tool_is_found_from_the_keys() -> None:
    assert detect({"model_name_or_path": "a", "stage": "sft"}, "x") == "llamafactory"
    assert detect({"model_name_or_path": "a", "dataset_name": "b"}, "x") == "trl"
    assert detect({"type": "DoRA", "r": 4}, "x") == "olive"
    with pytest.raises(InputError, match=r"^x: no sign of the tool"):
        detect({"model_name_or_path": "a", "learning_rate": 1}, "x")
    with pytest.raises(InputError, match=r"^x: this can be of axolotl or of llamafactory; name one with --from"):
        detect({"base_model": "a", "stage": "sft"}, "x")


def test_the_registry_names_the_nearest() -> None:
    assert importers.names() == sorted(CONFIGS)
    assert all(importers.get(name).SUMMARY for name in importers.names())
    with pytest.raises(InputError, match="did you mean `axolotl`"):
        importers.get("axolotel")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "reward": ({"stage": "rm", "model_name_or_path": "a"}, "stage: `rm` trains a reward model"),
    "ppo": ({"stage": "ppo", "model_name_or_path": "a"}, "stage: `ppo` is reinforcement learning"),
    "freeze": ({"stage": "sft", "finetuning_type": "freeze"}, "finetuning_type: `freeze` has no counterpart"),
    "merge": ({"model_name_or_path": "a", "export_dir": "b"}, "export_dir: this file merges"),
    "serve": ({"model_name_or_path": "a", "infer_backend": "vllm", "template": "x"}, "do_train: this file trains nothing"),
    "grpo": ({"base_model": "a", "rl": "grpo"}, "rl: `grpo` is reinforcement learning"),
    "axolotl reward": ({"base_model": "a", "reward_model": True}, "reward_model: a reward model is trained"),
    "trl grpo": ({"model_name_or_path": "a", "dataset_name": "b", "num_generations": 4}, "num_generations: this is reinforcement learning"),
    "openai": (
        {"model": "a", "training_file": "b", "method": {"type": "reinforcement"}},
        "method.type: `reinforcement` has no counterpart",
    ),
    "no pass": ({"passes": {"c": {"type": "OnnxConversion"}}, "input_model": {}}, "passes: a recipe is one fine-tuning, and here is no"),
    "two passes": ({"passes": {"a": {"type": "LoRA"}, "b": {"type": "QLoRA"}}}, "here is several: a, b; keep one"),
    "serving workspace": (
        {"apiVersion": "kaito.sh/v1beta1", "kind": "Workspace", "inference": {}},
        "tuning: this Workspace serves a model",
    ),
    "bad rate": ({"base_model": "a", "num_epochs": 1, "learning_rate": "fast"}, "learning_rate: a number is needed, not fast"),
    "bad rank": ({"base_model": "a", "adapter": "lora", "lora_r": 0}, "lora_r: a number of at least 1 is needed, not 0"),
    "bad data": ({"base_model": "a", "num_epochs": 1, "datasets": [3]}, "datasets[0]: keys with values are needed, not 3"),
    "warm-up above one": ({"base_model": "a", "num_epochs": 1, "warmup_ratio": 2}, "train.warmup"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_job_that_no_recipe_can_mean_is_refused_by_its_key(tmp_path: Path, case: str) -> None:
    mapping, message = REFUSED[case]
    with pytest.raises(InputError) as e:
        imported(tmp_path, mapping)
    assert str(e.value).startswith(str(tmp_path / "config.yaml"))
    assert message in str(e.value)


def test_preference_losses_of_each_tool(tmp_path: Path) -> None:
    def task(mapping: dict[str, Any]) -> Any:
        recipe = imported(tmp_path, mapping).recipe
        tasks.get("preference").Options.model_validate({k: v for k, v in recipe["task"].items() if k != "name"})
        return {k: v for k, v in recipe["task"].items() if k != "name"}

    factory = {"model_name_or_path": "a", "finetuning_type": "lora", "stage": "dpo"}
    assert task({**factory, "pref_loss": "simpo", "simpo_gamma": 0.7, "pref_beta": 2}) == {"loss": "simpo", "beta": 2, "gamma": 0.7}
    assert task({**factory, "pref_loss": "orpo"}) == {"loss": "orpo", "beta": 0.1}
    assert task({**factory, "pref_ftx": 0.2}) == {"loss": "dpo", "beta": 0.1, "nll_weight": 0.2}
    assert task({**factory, "stage": "kto", "kto_rejected_weight": 2}) == {"loss": "kto", "beta": 0.1, "undesirable_weight": 2}
    lotl = {"base_model": "a", "num_epochs": 1}
    assert task({**lotl, "rl": "orpo", "orpo_alpha": 0.3}) == {"loss": "orpo", "beta": 0.3}
    assert task({**lotl, "rl": "kto", "rl_beta": 0.5, "kto_desirable_weight": 0.2}) == {"loss": "kto", "beta": 0.5, "desirable_weight": 0.2}
    assert task({**lotl, "rl": "simpo"}) == {"loss": "simpo", "beta": 2}
    assert task({"model_name_or_path": "a", "dataset_name": "b", "beta": 0.3, "desirable_weight": 2}) == {
        "loss": "kto",
        "beta": 0.3,
        "desirable_weight": 2,
    }


def test_a_loss_without_counterpart_is_said(tmp_path: Path) -> None:
    found = imported(tmp_path, {"model_name_or_path": "a", "finetuning_type": "lora", "stage": "dpo", "pref_loss": "ipo"})
    assert next(item.reason for item in found.left_over if item.key == "pref_loss").startswith("no counterpart because the losses are dpo")
    found = imported(tmp_path, {"model_name_or_path": "a", "dataset_name": "b", "beta": 0.3})
    assert any("which trainer" in note for note in found.notes)


def test_methods_beyond_lora(tmp_path: Path) -> None:
    factory = {"model_name_or_path": "a", "stage": "sft"}

    def method(mapping: dict[str, Any]) -> Any:
        chosen = from_mapping(imported(tmp_path, mapping).recipe).method
        methods.get(chosen.name).Options.model_validate(chosen.options)
        return chosen.name, {k: v for k, v in chosen.options.items() if k not in ("rank", "alpha", "dropout", "targets")}

    assert method({**factory, "finetuning_type": "full"}) == ("full", {})
    assert method({**factory, "finetuning_type": "oft", "oft_block_size": 8}) == ("oft", {"block_size": 8})
    assert method({**factory, "pissa_init": True}) == ("lora", {"start": "pissa"})
    assert method({**factory, "use_dora": True}) == ("dora", {})
    assert method({**factory, "use_dora": True, "quantization_bit": 4}) == ("qlora", {"dora": True})
    assert method({"type": "DoRA", "r": 4}) == ("dora", {})
    assert method({"type": "QLoRA", "double_quant": True}) == ("qlora", {})
    assert method({"type": "LoKr", "decompose_factor": 4}) == ("lokr", {"decompose_factor": 4})
    assert method({"type": "LoHa", "rank_dropout": 0.1}) == ("loha", {"rank_dropout": 0.1})
    lotl = {"base_model": "a", "num_epochs": 1, "adapter": "lora", "lora_r": 4, "lora_target_linear": True}
    assert method({**lotl, "peft_use_dora": True}) == ("dora", {})
    assert method({**lotl, "peft_init_lora_weights": "pissa_niter_16"}) == ("lora", {"start": "pissa"})
    assert method({**lotl, "peft": {"loftq_config": {"loftq_bits": 4}}}) == ("qlora", {"start": "loftq"})


def test_eight_bits_patterns_and_other_quantisers_are_said_and_not_guessed(tmp_path: Path) -> None:
    found = imported(
        tmp_path,
        {"base_model": "a", "num_epochs": 1, "adapter": "lora", "load_in_8bit": True, "lora_target_modules": r"layers\.\d+\.q_proj"},
    )
    assert found.recipe["method"] == {"name": "lora", "rank": 8, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}
    assert {"load_in_8bit", "lora_target_modules"} <= {i.key for i in found.left_over if i.reason.startswith("no counterpart")}
    found = imported(tmp_path, {"model_name_or_path": "a", "stage": "sft", "quantization_bit": 4, "quantization_method": "hqq"})
    assert found.recipe["method"]["name"] == "lora"
    assert {"quantization_bit", "quantization_method"} <= {i.key for i in found.left_over if i.reason.startswith("no counterpart")}


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"deepspeed": "ds_z3_config.json"}, "zero3"),
        ({"deepspeed": "deepspeed_configs/zero3_bf16_cpuoffload_all.json"}, {"stage": "zero3", "offload": "cpu"}),
        ({"deepspeed": "ds_z0_config.json"}, "ddp"),
        ({"deepspeed": {"zero_optimization": {"stage": 1}}}, "zero1"),
        (
            {"deepspeed": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": "auto"}}},
            "offload",
        ),
        ({"deepspeed": "mine.json"}, None),
        ({"deepspeed": "beside.json"}, {"stage": "zero1", "offload": "cpu"}),
        ({"fsdp": "full_shard auto_wrap offload"}, {"stage": "fsdp", "offload": "cpu"}),
        ({"fsdp": ["no_shard"]}, "ddp"),
        ({"dp_shard_size": 2}, {"stage": "fsdp", "processes": 2}),
        ({}, None),
    ],
)
def test_sharding(tmp_path: Path, mapping: dict[str, Any], expected: Any) -> None:
    (tmp_path / "beside.json").write_text('{"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}')
    found = imported(tmp_path, {"base_model": "a", "num_epochs": 1, "micro_batch_size": 2, **mapping})
    assert found.recipe.get("sharding") == ({"stage": "zero2", "offload": "cpu"} if expected == "offload" else expected)
    assert found.recipe["train"]["rows_per_step"] == 2 * (mapping.get("dp_shard_size") or 1)
    if mapping.get("deepspeed") == "mine.json":
        assert "deepspeed" in {i.key for i in found.left_over if i.reason.startswith("no counterpart")}


def test_names_in_dataset_info_become_files_and_hub_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(
        '{"mine": {"file_name": "mine.jsonl"}, "theirs": {"hf_hub_url": "org/d", "subset": "en", "split": "test"},'
        ' "odd": {"file_name": "o.csv", "columns": {"prompt": "q"}}}'
    )
    (tmp_path / "examples" / "deep").mkdir(parents=True)
    found = imported(tmp_path / "examples" / "deep", {"model_name_or_path": "a", "stage": "sft", "dataset": "mine, theirs,odd,none"})
    assert found.recipe["data"]["train"] == ["data/mine.jsonl", "org/d/en:test", "data/o.csv", "data/none.json"]
    assert any("says more of odd (columns)" in note for note in found.notes)
    assert any("none is a name in data/dataset_info.json" in note for note in found.notes)


def test_defaults_of_the_other_tool_are_written_out(tmp_path: Path) -> None:
    found = imported(tmp_path, {"model_name_or_path": "a", "dataset_name": "org/b", "report_to": "none"})
    assert found.recipe == {
        "model": "a",
        "task": "chat",
        "data": {"train": "org/b"},
        "method": "full",
        "train": {"epochs": 3, "rows_per_step": 8, "max_length": 1024, "learning_rate": 2e-5, "schedule": "linear", "warmup": 0},
    }
    assert sum("TRL's default" in note for note in found.notes) == 6


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, {"schedule": "constant", "warmup": 0}),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.1}, {"schedule": "constant", "warmup": 0.1}),
        ({"lr_scheduler_type": "cosine_with_restarts"}, {"schedule": "cosine", "warmup": 0}),
        ({"warmup_steps": 5, "max_steps": 50}, {"schedule": "linear", "warmup": 0.1, "max_steps": 50}),
        ({"warmup_steps": 0.05}, {"schedule": "linear", "warmup": 0.05}),
        ({"warmup_steps": 5}, {"schedule": "linear"}),
    ],
)
def test_schedule_and_warm_up(tmp_path: Path, mapping: dict[str, Any], expected: dict[str, Any]) -> None:
    train = imported(tmp_path, {"model_name_or_path": "a", "dataset_name": "org/b", **mapping}).recipe["train"]
    assert {k: train[k] for k in ("schedule", "warmup", "max_steps") if k in train} == expected


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"bf16": True}, "bf16"),
        ({"bf16": False}, "fp32"),
        ({"fp16": True}, None),
        ({"bf16": False, "dtype": "bfloat16"}, None),
        ({"dtype": "bfloat16"}, "bf16"),
        ({"torch_dtype": "float32"}, "fp32"),
        ({"dtype": "auto"}, None),
        ({}, None),
    ],
)
def test_precision(tmp_path: Path, mapping: dict[str, Any], expected: str | None) -> None:
    found = imported(tmp_path, {"model_name_or_path": "a", "dataset_name": "org/b", **mapping})
    assert found.recipe["train"].get("precision") == expected
    assert (expected is None and bool(mapping)) == any(i.key in mapping for i in found.left_over)


def test_a_mixture_keeps_its_shares(tmp_path: Path) -> None:
    found = imported(
        tmp_path, {"model_name_or_path": "a", "dataset_mixer": {"org/a": 1.0, "org/b": 0.5}, "dataset_splits": ["train_sft", "test_sft"]}
    )
    assert found.recipe["data"] == {"train": ["org/a:train_sft", {"path": "org/b:train_sft", "weight": 0.5}]}
    mixture = {"datasets": [{"id": "org/a", "config": "x", "split": "s", "weight": 0.25}], "test_split_size": 0.1, "seed": 1}
    found = imported(tmp_path, {"model_name_or_path": "a", "dataset_mixture": mixture, "eval_strategy": "epoch"})
    assert found.recipe["data"] == {"train": [{"path": "org/a/x:s", "weight": 0.25}], "valid": 0.1}


def test_kaito_without_a_workspace_or_without_a_config(tmp_path: Path) -> None:
    found = imported(tmp_path, config("kaito", tmp_path))
    assert (found.recipe["model"], found.recipe["data"]["train"]) == ("MODEL", "TRAIN.jsonl")
    assert sum("the file names no" in note for note in found.notes) == 2
    workspace: dict[str, Any] = {
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "tuning": {"preset": {"name": "phi-4"}, "method": "qlora"},
    }
    found = imported(tmp_path, workspace)
    assert found.recipe["model"] == "microsoft/phi-4"
    assert found.recipe["method"] == {"name": "qlora", "rank": 8, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}
    assert found.recipe["train"]["rows_per_step"] == 1
    workspace["tuning"]["method"] = "lora"
    assert imported(tmp_path, workspace).recipe["method"]["name"] == "lora"


def test_text_tasks(tmp_path: Path) -> None:
    packed = {"base_model": "a", "sequence_len": 64, "max_steps": 5, "sample_packing": True}
    for data in (
        {"pretraining_dataset": [{"path": "org/c4", "name": "en", "type": "pretrain"}]},
        {"datasets": [{"path": "org/c4", "name": "en", "type": "completion"}]},
    ):
        found = imported(tmp_path, {**packed, **data})
        assert (found.recipe["task"], found.recipe["data"]["train"], found.recipe["train"]["tokens_per_step"]) == ("text", "org/c4/en", 64)
    found = imported(tmp_path, {"model_name_or_path": "a", "stage": "pt", "cutoff_len": 32, "per_device_train_batch_size": 2})
    assert (found.recipe["task"], found.recipe["train"]["tokens_per_step"]) == ("text", 64)
    mixed = {"datasets": [{"path": "org/a", "type": "completion"}, {"path": "org/b", "type": "chat_template"}]}
    found = imported(tmp_path, {**packed, **mixed})
    assert found.recipe["task"] == "chat"
    assert any("one task" in note for note in found.notes)
