"""PiSSA, LoRA+ and going on from another run: what is computed from where."""

from pathlib import Path
from typing import Any

import pytest
import torch
from against_peft import RATE, our_losses, ours, peft_losses
from pydantic import ValidationError
from safetensors.torch import load_file

from tunery.errors import InputError
from tunery.methods import _adapter_file, dora, full, lora, trainable
from tunery.models.load import load_model

IDS = torch.arange(3, 23)[None]
PISSA = lora.Options(rank=4, alpha=8, start="pissa")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_takes_pefts_twenty_steps(tiny_any: Path, rslora: bool) -> None:
    """PEFT puts the rest of the weight in place of the weight; here the weight stays, and what is learned is the difference."""
    from peft import LoraConfig, get_peft_model

    options = PISSA.model_copy(update={"rslora": rslora})
    config = LoraConfig(r=4, lora_alpha=8, use_rslora=rslora, init_lora_weights="pissa", target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = peft_losses(get_peft_model(load_model(tiny_any), config), ours(tiny_any, lora, options))  # type: ignore[arg-type]
    assert our_losses(ours(tiny_any, lora, options), lora, options) == pytest.approx(theirs, abs=1e-5)


def test_pissa_begins_at_no_change_with_the_main_directions(tiny_llama: Path) -> None:
    model, whole = ours(tiny_llama, lora, PISSA), load_model(tiny_llama)
    assert torch.equal(logits(model), logits(whole))  # bit for bit: nothing was taken out of the base and put back
    for name, layer in _adapter_file.adapted(model).items():
        weight = whole.get_submodule(name).weight
        singular = torch.linalg.svdvals(weight)
        rest = weight - PISSA.scale * layer.lora_B @ layer.lora_A
        torch.testing.assert_close(rest.norm(), singular[4:].norm(), atol=1e-4, rtol=1e-4)


def test_pissa_learns_small_steps_in_bf16(tiny_llama: Path) -> None:
    """A step of 1e-4 of a matrix is less than bfloat16 holds of it: taken as BA − B₀A₀ it would be lost."""
    layer = _adapter_file.adapted(ours(tiny_llama, lora, PISSA, "bfloat16"))["model.layers.0.mlp.up_proj"]
    assert layer.start_A is not None
    assert layer.start_B is not None
    with torch.no_grad():
        layer.lora_A.mul_(1 + 1e-4 * torch.randn(layer.lora_A.shape, generator=torch.Generator().manual_seed(0)))
        exact = layer.lora_B.double() @ layer.lora_A.double() - layer.start_B.double() @ layer.start_A.double()
        a, b = (m.bfloat16().double() for m in layer.factors())
        naive = layer.lora_B.bfloat16().double() @ layer.lora_A.bfloat16().double()
        naive -= layer.start_B.bfloat16().double() @ layer.start_A.bfloat16().double()
    assert (b @ a - exact).norm() < 0.01 * exact.norm()
    assert (naive - exact).norm() > exact.norm()


@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_is_saved_as_a_lora_of_the_untouched_base(tiny_any: Path, tmp_path: Path, rslora: bool) -> None:
    from peft import PeftModel

    options = PISSA.model_copy(update={"rslora": rslora})
    model = ours(tiny_any, lora, options)
    our_losses(model, lora, options)
    lora.save(model, options, tmp_path, "base")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {t.shape[0] for n, t in tensors.items() if "lora_A" in n} == {8}
    theirs = PeftModel.from_pretrained(load_model(tiny_any), str(tmp_path))
    torch.testing.assert_close(logits(theirs), logits(model), atol=2e-5, rtol=1e-5)
    assert (logits(model) - logits(load_model(tiny_any))).abs().max() > 0.01
    # Used, it is an ordinary adapter; trained on, it is where it was, to the bit, whatever its own decomposition gave.
    used = lora.for_use(options)
    plain = ours(tiny_any, lora, used)
    lora.load(plain, tmp_path)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-6, rtol=1e-6)
    again = ours(tiny_any, lora, options)
    for layer in _adapter_file.adapted(again).values():
        layer.count_from(-layer.start_A, -layer.start_B)  # type: ignore[operator]
    lora.load(again, tmp_path)
    for layer, other in zip(_adapter_file.adapted(again).values(), _adapter_file.adapted(model).values(), strict=True):
        for part in ("lora_A", "lora_B", "start_A", "start_B"):
            assert torch.equal(getattr(layer, part), getattr(other, part))


def test_pissa_goes_on_only_from_pissa(tiny_llama: Path, tmp_path: Path) -> None:
    plain = lora.Options(rank=8, alpha=16)
    lora.save(ours(tiny_llama, lora, PISSA), PISSA, tmp_path / "pissa", "base")
    lora.save(ours(tiny_llama, lora, plain), plain, tmp_path / "plain", "base")
    lora.check_start(tmp_path / "pissa", PISSA)
    lora.check_start(tmp_path / "pissa", plain)  # the file is an ordinary adapter of twice the rank
    with pytest.raises(InputError, match=r"did not begin by PiSSA; leave method\.start out"):
        lora.check_start(tmp_path / "plain", PISSA)
    with pytest.raises(InputError, match=r"has rank 4 and the recipe 2; set method\.rank to 4"):
        lora.check_start(tmp_path / "pissa", PISSA.model_copy(update={"rank": 2}))
    with pytest.raises(InputError, match=r"`start: pissa` needs a rank of at most 32"):
        ours(tiny_llama, lora, lora.Options(rank=33, start="pissa"))


def test_an_adapter_of_another_kind_or_scale_is_refused_before_anything_is_loaded(tiny_llama: Path, tmp_path: Path) -> None:
    options = lora.Options(rank=4, alpha=8)
    lora.save(ours(tiny_llama, lora, options), options, tmp_path / "lora", "base")
    full.save(load_model(tiny_llama), full.Options(), tmp_path / "full", "base")
    for method, folder, chosen, message in (
        (lora, "lora", lora.Options(rank=4, alpha=9), r"has alpha 8\.0 and the recipe 9\.0; set method\.alpha to 8"),
        (lora, "lora", lora.Options(rank=4, alpha=8, rslora=True), r"has rslora False and the recipe True"),
        (lora, "lora", lora.Options(rank=4, alpha=8, train_tokens=("yes",)), r"has no trained tokens.*leave it out"),
        (dora, "lora", dora.Options(rank=4, alpha=8), "is LoRA without magnitudes; set the method to lora"),
        (lora, "full", options, "holds a whole model's weights, not an adapter; name it as the `model`"),
        (lora, "none", options, r"there is no adapter in .*none"),
        (full, "lora", full.Options(), r"is an adapter, and full tuning goes on from whole weights; merge it first"),
        (full, "none", full.Options(), r"there are no weights in .*none"),
    ):
        with pytest.raises(InputError, match=message):
            method.check_start(tmp_path / folder, chosen)  # type: ignore[attr-defined]
    lora.check_start(tmp_path / "lora", options)
    full.check_start(tmp_path / "full", full.Options())


def test_another_runs_adapter_is_gone_on_from_to_the_bit(tiny_llama: Path, tmp_path: Path) -> None:
    for method, chosen in ((lora, lora.Options(rank=4, alpha=8)), (dora, dora.Options(rank=4, alpha=8)), (full, full.Options())):
        options: Any = chosen
        model = ours(tiny_llama, method, options)
        with torch.no_grad():
            for p in trainable(model).values():
                p.add_(0.01)
        method.save(model, options, tmp_path / method.__name__, "base")  # type: ignore[attr-defined]
        method.check_start(tmp_path / method.__name__, options)  # type: ignore[attr-defined]
        new = ours(tiny_llama, method, options)
        assert not torch.equal(logits(new), logits(model))
        method.load(new, tmp_path / method.__name__)  # type: ignore[attr-defined]
        assert torch.equal(logits(new), logits(model))


def test_loraplus_takes_pefts_twenty_steps(tiny_llama: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    options = lora.Options(rank=4, alpha=8, loraplus_ratio=4)

    def groups(wrapped: Any) -> Any:
        optimizer = create_loraplus_optimizer(wrapped, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=4.0, loraplus_weight_decay=0.01)
        return optimizer.param_groups

    wrapped = get_peft_model(load_model(tiny_llama), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))  # type: ignore[arg-type]
    theirs = peft_losses(wrapped, ours(tiny_llama, lora, options), groups)
    assert our_losses(ours(tiny_llama, lora, options), lora, options) == pytest.approx(theirs, abs=1e-5)
    assert {g["lr"] for g in lora.parameter_groups(ours(tiny_llama, lora, options), options, 1e-3, 0.0)} == {1e-3, 4e-3}
    plain = lora.Options(rank=4, alpha=8)
    assert [g["lr"] for g in lora.parameter_groups(ours(tiny_llama, lora, plain), plain, 1e-3, 0.0)] == [1e-3]


def test_loftq_without_quantising_says_which_method_quantises() -> None:
    with pytest.raises(ValidationError, match=r"set method\.name to qlora"):
        lora.Options.model_validate({"start": "loftq"})
    assert all(f.description for m in (lora, dora) for f in m.Options.model_fields.values())
