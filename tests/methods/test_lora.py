"""LoRA: PEFT's numbers, its file, and its choice of layers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from against_peft import Run, assert_same_runs, our_losses, our_run, ours, peft_run

from tunery.errors import InputError
from tunery.methods import get, lora, trainable
from tunery.methods._low_rank import target_names
from tunery.models.load import load_model

OPTIONS = lora.Options(rank=4, alpha=8)


def by_peft(folder: Path, options: lora.Options, dtype: str = "float32") -> Run:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, use_rslora=options.rslora, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(load_model(folder, dtype), config)  # type: ignore[arg-type]
    return peft_run(wrapped, ours(folder, lora, options, dtype, stirred=True))


def test_twenty_steps_equal_pefts_and_in_bf16_no_further_from_float32(tiny_any: Path) -> None:
    single, half = ((our_run(tiny_any, lora, OPTIONS, t), by_peft(tiny_any, OPTIONS, t)) for t in ("float32", "bfloat16"))
    assert_same_runs(*single, *half)


def test_rslora_takes_pefts_twenty_steps(tiny_any: Path) -> None:
    options = OPTIONS.model_copy(update={"rslora": True})
    mine = our_losses(ours(tiny_any, lora, options, stirred=True), lora, options)
    assert mine == pytest.approx(by_peft(tiny_any, options).losses, abs=1e-5)
    assert mine[-1] != pytest.approx(by_peft(tiny_any, OPTIONS).losses[-1], abs=1e-4)


def trained_like(folder: Path, options: lora.Options) -> Any:
    model = load_model(folder)
    lora.attach(model, options, seed=0)
    with torch.no_grad():
        for p in trainable(model).values():
            p.normal_(0, 0.1, generator=torch.Generator().manual_seed(p.numel()))
    return model


@pytest.mark.parametrize("options", [{}, {"rslora": True, "rank": 8}, {"targets": ["o_proj"]}, {"targets": ["layers.1.self_attn.o_proj"]}])
def test_peft_loads_the_file_with_the_same_logits(tiny_any: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    from peft import PeftModel

    chosen = lora.Options(**options)
    model = trained_like(tiny_any, chosen)
    lora.save(model, chosen, tmp_path / "adapter", "base")
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        ours = model(input_ids=ids).logits
        theirs = PeftModel.from_pretrained(load_model(tiny_any), str(tmp_path / "adapter"))(input_ids=ids).logits
        base = load_model(tiny_any)(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (ours - base).abs().max() > 0.01


def test_the_file_comes_back_bit_equal(tiny_any: Path, tmp_path: Path) -> None:
    options = lora.Options(rank=3)
    model = trained_like(tiny_any, options)
    lora.save(model, options, tmp_path, "base")
    again = load_model(tiny_any)
    lora.attach(again, options, seed=5)
    lora.load(again, tmp_path)
    for name, p in trainable(model).items():
        assert torch.equal(p, trainable(again)[name])


def test_all_linear_leaves_the_head_and_adapts_the_fused_layers(tiny_phi3: Path) -> None:
    names = {n.rpartition(".")[2] for n in target_names(load_model(tiny_phi3), "all-linear")}
    assert names == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


def test_an_unknown_target_names_those_that_exist(tiny_phi3: Path) -> None:
    with pytest.raises(InputError, match=r"`q_proj`.*qkv_proj"):
        target_names(load_model(tiny_phi3), ("q_proj",))


def test_the_start_depends_on_the_seed_alone(tiny_llama: Path) -> None:
    def start(seed: int) -> list[torch.Tensor]:
        torch.rand(seed + 3)  # what was drawn before must not matter
        model = load_model(tiny_llama)
        lora.attach(model, lora.Options(), seed)
        return list(trainable(model).values())

    assert all(torch.equal(a, b) for a, b in zip(start(1), start(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(start(1), start(2), strict=True))


def test_an_adapter_of_another_shape_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    options = lora.Options(rank=3)
    lora.save(trained_like(tiny_llama, options), options, tmp_path, "base")
    other = load_model(tiny_llama)
    lora.attach(other, lora.Options(rank=4), 0)
    with pytest.raises(InputError, match="rank, targets or base model differ"):
        lora.load(other, tmp_path)


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean `lora`"):
        get("lorra")
