"""A DeepSpeed configuration of the user's own: what contradicts the recipe is refused, the rest reaches DeepSpeed."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from launched import command, finish, job, start

from tunery import sharding
from tunery.errors import InputError, MissingExtraError
from tunery.recipe import Named, Train
from tunery.sharding import zero2, zero3
from tunery.sharding._deepspeed_config import DeepSpeedOptions, settle, whole_config
from tunery.sharding._deepspeed_own import FOREIGN

TRAIN = Train(learning_rate=2e-4, rows_per_step=16, precision="bf16", weight_decay=0.01)


def settled(own: dict[str, Any], stage: int = 2, **options: Any) -> tuple[DeepSpeedOptions, list[str]]:
    return settle(DeepSpeedOptions(config=own, **options), stage, TRAIN)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"train_batch_size": 32}, "`train_batch_size` is 32, and a step is the recipe's rows_per_step 16"),
        ({"gradient_clipping": 0.5}, r"`gradient_clipping` is 0\.5, and train\.clip is 1\.0"),
        ({"zero_optimization": {"stage": 3}}, r"`zero_optimization\.stage` is 3, and the recipe's stage is zero2"),
        ({"fp16": {"enabled": True}}, "`fp16` is set, and precision is train.precision"),
        ({"optimizer": {"type": "Lion"}}, r"`optimizer\.type` is Lion, and train\.optimizer is adamw"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, r"`optimizer\.params\.lr` is 0\.001, and the recipe's is 0\.0002"),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}}},
            r"`scheduler` is WarmupLR, and train\.schedule is cosine",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            r"offload_optimizer\.device` is cpu, and the recipe's offload is none",
        ),
        ({"zero_optimization": {"cpu_offload": True}}, r"`zero_optimization\.cpu_offload` is true, and the recipe's offload is none"),
        (
            {"zero_optimization": {"offload_param": {"device": "cpu"}}},
            r"offload_param\.device` is cpu, and the recipe's stage zero2 divides no weights \(write `stage: zero3`\)",
        ),
        (
            {"zero_optimization": {"zero_quantized_gradients": True}},
            r"`zero_optimization\.zero_quantized_gradients` is set, and gradients are exchanged in float32",
        ),
        ({"zero_optimization": 2}, "`zero_optimization` is 2, and DeepSpeed takes an object there"),
        ({"bf16": {"enabled": False}}, "`bf16` is off, and train.precision is bf16"),
        ({"optimizer": "AdamW"}, "`optimizer` is AdamW, and DeepSpeed takes an object there"),
        ({"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, r"`optimizer\.params\.adam_w_mode` is False"),
        ({"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.95]}}}, r"params\.betas` is \[0\.9, 0\.95\], and .* \[0\.9, 0\.999\]"),
        ({"optimizer": {"type": "AdamW", "params": {"momentum": 0.9}}}, r"params\.momentum` is 0\.9, and the recipe's is not set"),
        ({"gradient_allreduce_op": "sum", "autotuning": {"enabled": True}}, "`gradient_allreduce_op` is set.*; `autotuning` is set"),
    ],
)
def test_a_contradiction_is_named_with_both_values(own: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        settled(own)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("own", [{"bf16": {"enabled": True}}, {"bfloat16": {"enabled": True}}])
def test_bfloat16_by_either_name(own: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"`(bf16|bfloat16)` is on, and train\.precision is fp32"):
        settle(DeepSpeedOptions(config=own), 2, TRAIN.model_copy(update={"precision": "fp32"}))
    assert not set(own) & set(whole_config(own, 2, "none", 1.0, "cpu", 10))


@pytest.mark.parametrize("device", ["none", "nvme"])
@pytest.mark.parametrize("key", ["offload_optimizer", "offload_param"])
def test_offloading_elsewhere_than_the_recipe_says(key: str, device: str) -> None:
    with pytest.raises(InputError, match=rf"`zero_optimization\.{key}\.device` is {device}, and the recipe's offload is cpu"):
        settled({"zero_optimization": {key: {"device": device}}}, 3, offload="cpu")


def test_the_same_offloading_is_accepted() -> None:
    own = {"zero_optimization": {"offload_optimizer": {"device": "cpu", "pin_memory": True}, "offload_param": {"device": "cpu"}}}
    options, notes = settled(own, 3, offload="cpu")
    assert notes == []
    assert whole_config(options.config, 3, "cpu", 1.0, "cpu", 10)["zero_optimization"]["offload_optimizer"]["device"] == "cpu"  # type: ignore[arg-type]
    assert settled({"zero_optimization": {"cpu_offload": True}}, offload="cpu")[1] == []


@pytest.mark.parametrize("key", FOREIGN)
def test_every_key_of_another_training_is_named(key: str) -> None:
    for value in ({"enabled": True, "x": 1}, 3):
        with pytest.raises(InputError, match=f"`{key}` is set, and {FOREIGN[key]}"):
            settled({key: value})
    assert settled({key: {"enabled": False}})[1] == []
    assert key not in whole_config({key: {"enabled": False}}, 2, "none", 1.0, "cpu", 10) or key == "zero_force_ds_cpu_optimizer"


def test_what_tunery_does_anyway_is_accepted() -> None:
    same = {"communication_data_type": "fp32", "gradient_predivide_factor": 1.0, "sequence_parallel_size": 1, "prescale_gradients": False}
    assert settled({**same, "data_types": {"grad_accum_dtype": "fp32"}})[1] == []


def test_all_contradictions_are_named_at_once() -> None:
    with pytest.raises(InputError, match=r"train_batch_size.*gradient_clipping.*scheduler"):
        settled({"train_batch_size": 1, "gradient_clipping": 9, "scheduler": {"type": "OneCycle", "params": {"x": 1}}})


def test_what_says_the_same_is_accepted() -> None:
    """As transformers' examples are written: `auto` everywhere, or the recipe's own values."""
    auto = {
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_num_steps": "auto"}},
        "zero_optimization": {"stage": 2, "allgather_bucket_size": 2e8, "reduce_bucket_size": "auto", "overlap_comm": True},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
    }
    options, notes = settled(auto)
    assert notes == []
    config = whole_config(options.config, 2, "none", 1.0, "cpu", 1000)  # type: ignore[arg-type]
    assert config["zero_optimization"] == {"stage": 2, "allgather_bucket_size": 2e8, "overlap_comm": True, "reduce_bucket_size": 1000}
    assert "auto" not in json.dumps(config)
    assert not {"optimizer", "scheduler", "fp16", "bf16", "train_batch_size"} & set(config)
    own = {
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "train_batch_size": 16,
        "optimizer": {"type": "Adam", "params": {"lr": 2e-4}},
    }
    assert settled(own)[1] == []


def test_what_has_no_effect_is_said() -> None:
    _, notes = settled({"train_micro_batch_size_per_gpu": 4, "activation_checkpointing": {"partition_activations": True}})
    assert notes == [
        "sharding.config: `train_micro_batch_size_per_gpu` has no effect: how a step is cut into batches changes nothing",
        "sharding.config: `activation_checkpointing` has no effect: train.gradient_checkpointing decides",
    ]


def test_a_key_that_deepspeed_does_not_know() -> None:
    with pytest.raises(InputError, match=r"DeepSpeed does not take `zero_optimization\.reduce_buket_size`"):
        settled({"zero_optimization": {"reduce_buket_size": 1}})
    with pytest.raises(InputError, match=r"DeepSpeed does not take `gradient_cliping`; did you mean `gradient_clipping`\?"):
        settled({"gradient_cliping": 0.5})
    assert settled({"gradient_accumulation_dtype_of_mine": 1, "steps_per_print": 10})[1] == []


def test_check_refuses_it_before_anything_is_loaded(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"gradient_clipping": 0.3, "zero_optimization": {"stage": 1}}))
    recipe = job(tmp_path / "job", tiny_llama, sharding={"stage": "zero2", "config": str(tmp_path / "ds.json")})
    code, _, err = finish(start([str(command(tmp_path)), "check", str(recipe)]))
    assert code == 2, err
    assert err.strip().endswith('take these keys out, or write "auto"')
    assert "`zero_optimization.stage` is 1, and the recipe's stage is zero2; `gradient_clipping` is 0.3, and train.clip is 1.0" in err


def test_a_file_is_read_and_taken_along(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}}))
    options, _ = zero3.settle(zero3.Options(config=str(file)), TRAIN)
    assert options.config == {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    with pytest.raises(InputError, match=r"sharding\.config: there is no file .*other\.json"):
        zero2.settle(zero2.Options(config=str(tmp_path / "other.json")), TRAIN)
    file.write_text("{,")
    with pytest.raises(InputError, match=r"ds\.json is not readable JSON"):
        zero2.settle(zero2.Options(config=str(file)), TRAIN)


def test_offloading_is_the_recipes() -> None:
    config = whole_config({}, 3, "cpu", None, "cuda", 10)
    assert config["zero_optimization"]["offload_optimizer"] == {"pin_memory": True, "device": "cpu"}
    assert config["zero_optimization"]["offload_param"] == {"pin_memory": True, "device": "cpu"}
    assert config["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("version", "message"), [(None, "needs DeepSpeed, which is not installed"), ("0.16.4", r"needs DeepSpeed 0\.19, this is 0\.16\.4")]
)
def test_without_deepspeed_the_extra_is_named(version: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(package: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(package)
        return version

    monkeypatch.setattr(metadata, "version", found)
    with pytest.raises(MissingExtraError, match=rf"sharding zero2 {message}.*pip install 'tunery\[deepspeed\]'"):
        sharding.of(Named(name="zero2"))
    sharding.of(Named(name="fsdp"))  # torch's own needs nothing
