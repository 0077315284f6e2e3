"""A DeepSpeed configuration of the user's own: what contradicts the recipe is refused, the rest reaches DeepSpeed."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tunery import sharding
from tunery.errors import InputError, MissingExtraError
from tunery.recipe import Named, Train
from tunery.sharding import zero2, zero3
from tunery.sharding._deepspeed_config import DeepSpeedOptions, settle, whole_config

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
        ({"gradient_allreduce_op": "sum", "autotuning": {"enabled": True}}, "`gradient_allreduce_op` is set.*; `autotuning` is set"),
    ],
)
def test_a_contradiction_is_named_with_both_values(own: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        settled(own)
    assert "\n" not in str(caught.value)


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
    _, notes = settled({"train_micro_batch_size_per_gpu": 4})
    assert notes == ["sharding.config: `train_micro_batch_size_per_gpu` has no effect: how a step is cut into batches changes nothing"]


def test_a_key_that_deepspeed_does_not_know() -> None:
    with pytest.raises(InputError, match=r"DeepSpeed does not take `zero_optimization\.reduce_buket_size`"):
        settled({"zero_optimization": {"reduce_buket_size": 1}})


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
