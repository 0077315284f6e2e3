"""DoRA: PEFT's numbers without the dense product."""

from pathlib import Path
from typing import Any

import pytest
import torch
from against_peft import Run, assert_same_runs, our_run, ours, peft_run

from tunery.methods import dora, trainable
from tunery.methods._lora_linear import LoraLinear
from tunery.models.load import load_model

OPTIONS = dora.Options(rank=4, alpha=8)


def by_peft(folder: Path, dtype: str) -> Run:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(load_model(folder, dtype), config)  # type: ignore[arg-type]
    return peft_run(wrapped, ours(folder, dora, OPTIONS, dtype, stirred=True))


def test_twenty_steps_equal_pefts_and_in_bf16_no_further_from_float32(tiny_any: Path) -> None:
    single, half = ((our_run(tiny_any, dora, OPTIONS, t), by_peft(tiny_any, t)) for t in ("float32", "bfloat16"))
    assert_same_runs(*single, *half)


def layer(dropout: float = 0.0, dtype: torch.dtype = torch.float32, bias: bool = True) -> LoraLinear:
    generator = torch.Generator().manual_seed(0)
    base = torch.nn.Linear(48, 80, bias=bias)
    with torch.no_grad():
        for p in base.parameters():
            p.normal_(0, 0.3, generator=generator)
    made = LoraLinear(base.to(dtype).requires_grad_(False), 6, 1.5, dropout, generator, dora=True)
    with torch.no_grad():
        made.lora_B.normal_(0, 0.2, generator=generator)
        made.lora_magnitude_vector.mul_(1.1)
    return made


def pefts(mine: LoraLinear) -> Any:
    """PEFT's layer with the same values."""
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    config = LoraConfig(r=6, lora_alpha=9, lora_dropout=mine.dropout, use_dora=True)
    made: Any = Linear(mine.base, "default", config, r=6, lora_alpha=9)
    with torch.no_grad():
        made.lora_A["default"].weight.copy_(mine.lora_A)
        made.lora_B["default"].weight.copy_(mine.lora_B)
        made.lora_magnitude_vector["default"].weight.copy_(mine.lora_magnitude_vector)
    return made


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_its_gradients_are_pefts_with_dropout_too(dropout: float, bias: bool) -> None:
    mine = layer(dropout, bias=bias)
    theirs = pefts(mine)
    x = torch.randn(3, 7, 48, generator=torch.Generator().manual_seed(1))
    results = []
    for module in (mine, theirs):
        given = x.clone().requires_grad_(True)
        torch.manual_seed(5)
        y = module(given)
        (y * torch.cos(torch.arange(80.0))).sum().backward()
        results.append((y.detach(), given.grad))
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other, atol=2e-5, rtol=1e-5)
    for own, other in (
        (mine.lora_A, theirs.lora_A["default"].weight),
        (mine.lora_B, theirs.lora_B["default"].weight),
        (mine.lora_magnitude_vector, theirs.lora_magnitude_vector["default"].weight),
    ):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_factored_norm_is_the_dense_one_and_follows_the_matrices(dtype: torch.dtype) -> None:
    made = layer(dtype=dtype)
    for _ in range(2):
        for evaluating in (False, True):
            made.train(not evaluating)
            dense = (made.base.weight.double() + 1.5 * made.lora_B.double() @ made.lora_A.double()).norm(dim=1)
            torch.testing.assert_close(made.norm().double(), dense, atol=1e-6, rtol=1e-6)
        with torch.no_grad():
            made.lora_B.add_(0.3)


def test_a_row_of_zeros_stays_one() -> None:
    base = torch.nn.Linear(8, 4, bias=False).requires_grad_(False)
    base.weight[2] = 0.0
    made = LoraLinear(base, 2, 1.0, 0.0, torch.Generator(), dora=True)
    y = made(torch.ones(1, 8))
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y, base(torch.ones(1, 8)))


def test_the_file_loads_in_peft_and_comes_back_bit_equal(tiny_any: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    model = ours(tiny_any, dora, OPTIONS)
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(torch.empty_like(p).normal_(0, 0.1, generator=torch.Generator().manual_seed(p.numel())))
    dora.save(model, OPTIONS, tmp_path, "base")
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(load_model(tiny_any), str(tmp_path))
        torch.testing.assert_close(model(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=2e-5, rtol=1e-5)
        merged = theirs.merge_and_unload()(input_ids=ids).logits  # type: ignore[operator]
        torch.testing.assert_close(model(input_ids=ids).logits, merged, atol=2e-5, rtol=1e-5)
    again = ours(tiny_any, dora, OPTIONS)
    dora.load(again, tmp_path)
    for name, p in trainable(model).items():
        assert torch.equal(p, trainable(again)[name])
