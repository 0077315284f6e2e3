"""A step's parts add up, hold what they say, and looking on changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rows import random_rows

from tunery.profile.parts import PARTS
from tunery.run import Run


def losses(run: Run) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in run.metrics()]


def packed(steps: list[int]) -> tuple[float, float]:
    """(positions, predictions) of a step, the mean of these steps, as the learner lays them into packs."""
    import numpy as np

    from tunery.train.forward import FILLED
    from tunery.train.packs import pack
    from tunery.train.steps import plan_steps

    rows = random_rows(24)
    planned = plan_steps(rows.lengths, epochs=1, seed=3, rows_per_step=8, max_steps=6)
    packs = [p.filled(FILLED) for n in steps for p in pack([rows[int(i)] for i in planned[n - 1]], 512, True)]
    return float(np.sum([len(p.tokens) for p in packs])) / len(steps), float(np.sum([len(p.targets) for p in packs])) / len(steps)


METHODS: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "lora": ({"name": "lora", "rank": 4}, {}, {"matrix", "adapter"}),
    "dropout": ({"name": "lora", "rank": 4, "dropout": 0.3}, {}, {"matrix", "adapter"}),
    "dora": ({"name": "dora", "rank": 4}, {}, {"matrix", "adapter"}),
    "full": ({"name": "full"}, {}, {"matrix"}),
    "loha": ({"name": "loha"}, {}, {"matrix", "adapter"}),
    "checkpointing": ({"name": "lora", "rank": 4}, {"gradient_checkpointing": True}, {"matrix", "adapter"}),
}


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_is_divided_into_parts_and_trains_as_without(kind: str, watched: Any, tiny_llama: Path) -> None:
    method, settings, wanted = METHODS[kind]
    plain, _ = watched(tiny_llama, method, profile=False, **settings)
    run, profile = watched(tiny_llama, method, **settings)
    assert losses(run) == losses(plain)
    step = profile["step"]
    assert list(profile["training"]["profiled_steps"]) == ["3", "4", "5"]
    assert set(step["parts"]) <= set(PARTS)
    assert sum(sum(part.values()) for part in step["parts"].values()) == pytest.approx(step["seconds"], rel=1e-3)
    common = {"attention", "elementwise", "head", "optimiser", "data", "python", "copies"}
    assert {name for name, spent in step["parts"].items() if sum(spent.values())} >= common | wanted
    for name in ("matrix", "attention", "elementwise"):
        assert all(seconds > 0 for seconds in step["parts"][name].values()), f"{name} has a forward and a backward pass"
    assert sum(step["parts"].get("other", {"forward": 0.0}).values()) < 0.05 * step["seconds"]
    assert ("adapter" in step["parts"]) == ("adapter" in wanted)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen"])
def test_the_products_are_those_of_the_layers(architecture: str, watched: Any, request: pytest.FixtureRequest) -> None:
    """2·positions·weights forward, and again for the gradient of a layer's input, which the first layer's products do not need."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = request.getfixturevalue(f"tiny_{architecture}")
    _, profile = watched(folder, {"name": "lora", "rank": 4})
    model = AutoModelForCausalLM.from_pretrained(folder)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n}
    size = sum(m.weight.numel() for m in linear.values())
    first = sum(
        m.weight.numel()
        for n, m in linear.items()
        if ".layers.0." in n and n.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "qkv_proj")
    )
    thin = sum(4 * (m.in_features + m.out_features) for m in linear.values())
    thin_first = sum(
        4 * m.in_features
        for n, m in linear.items()
        if ".layers.0." in n and n.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "qkv_proj")
    )
    positions, predictions = packed([3, 4, 5])
    flops = profile["step"]["flops"]
    assert flops["matrix"] == pytest.approx(2 * positions * (2 * size - first))
    assert flops["adapter"] == pytest.approx(2 * positions * (3 * thin - thin_first))
    head = model.get_output_embeddings().weight.numel()
    assert flops["head"] == pytest.approx(4 * predictions * head, rel=0.05), "the model's own head is given one position more"


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_is_found_however_it_is_written(implementation: str, watched: Any, tiny_llama: Path) -> None:
    """The prefix method's rows are alone, so any attention serves."""
    _, profile = watched(tiny_llama, {"name": "prefix"}, implementation=implementation)
    attention = profile["step"]["parts"]["attention"]
    assert attention["forward"] > 0
    assert attention["backward"] > 0


def test_memory_at_the_height_is_what_the_plan_counts(watched: Any, tiny_llama: Path) -> None:
    """The plan runs the same code on shapes and counts every tensor that it makes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunery import methods, tasks
    from tunery.plan._counting import height
    from tunery.train import attention, forward, learners
    from tunery.train.steps import plan_steps

    _, profile = watched(tiny_llama, {"name": "lora", "rank": 4})
    rows = random_rows(24)
    step = plan_steps(rows.lengths, epochs=1, seed=3, rows_per_step=8, max_steps=6)[4]
    learner, lora = learners.get(tasks.get("chat"), None, True), methods.get("lora")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_llama), attn_implementation=attention.register())
        model = lora.attach(model, lora.Options.model_validate({"rank": 4}), 3).train()
    forward._compared.add(model)
    (batch,) = learner.batches(model, [rows[int(i)] for i in step])
    counted = height(model, lambda m: learner.loss(m, batch)[0], 512, again=False)
    memory = profile["memory"]
    assert sum(memory["passing"].values()) == pytest.approx(counted.total, rel=0.15)
    adapter = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert memory["held"]["adapter"] == adapter
    assert memory["held"]["optimiser"] == pytest.approx(2 * adapter, rel=0.01)
    assert memory["held"]["weights"] >= sum(p.numel() * 4 for p in model.parameters() if not p.requires_grad)
    assert memory["resident_bytes"] > sum(memory["held"].values()) + sum(memory["passing"].values())


def test_nothing_stays_on_the_model(tiny_llama: Path) -> None:
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from tunery import methods, tasks
    from tunery.models.load import load_model
    from tunery.profile._scopes import scopes
    from tunery.sharding._engine import Engine
    from tunery.train import attention, learners

    lora, engine, learner = methods.get("lora"), Engine(), learners.get(tasks.get("chat"), None, True)
    model = lora.attach(load_model(tiny_llama, attention=attention.register()), lora.Options(), 3)
    before = ALL_ATTENTION_FUNCTIONS["tunery"]
    with pytest.raises(ZeroDivisionError), scopes(model, engine, learner):
        assert "forward" in vars(model)
        assert ALL_ATTENTION_FUNCTIONS["tunery"] is not before
        1 / 0  # noqa: B018
    assert not any("forward" in vars(m) for m in model.modules())
    assert ALL_ATTENTION_FUNCTIONS["tunery"] is before
    assert not {"loss", "backward", "step", "clear"} & vars(engine).keys()
    assert "batches" not in vars(learner)
    assert isinstance(model, torch.nn.Module)
