"""QLoRA: PEFT's numbers on the base that transformers quantises."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from against_peft import Run, assert_same_runs, our_run, ours, peft_run, quantised_by_transformers
from exports import in_type

from tunery.errors import InputError, MissingExtraError
from tunery.methods import _adapter_file, _nf4, qlora, trainable
from tunery.models.load import load_model

pytest.importorskip("bitsandbytes")

PLAIN = qlora.Options(rank=4, alpha=8)
IDS = torch.arange(3, 23)[None]


def by_peft(folder: Path, options: qlora.Options, dtype: str) -> Run:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, use_dora=options.dora, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft_run(get_peft_model(quantised_by_transformers(folder, dtype), config), ours(folder, qlora, options, dtype, stirred=True))


@pytest.mark.parametrize("dora", [False, True])
def test_twenty_steps_equal_pefts_and_in_bf16_no_further_from_float32(tiny_any: Path, tmp_path: Path, dora: bool) -> None:
    options = PLAIN.model_copy(update={"dora": dora})
    # Stored in bfloat16, so that both precisions have the same four bits and the distance is that of computing alone.
    base = in_type(tiny_any, tmp_path / "base", "bfloat16")
    single, half = ((our_run(base, qlora, options, t), by_peft(base, options, t)) for t in ("float32", "bfloat16"))
    assert_same_runs(*single, *half)


@pytest.mark.parametrize("changes", [{}, {"dora": True}, {"targets": ("o_proj",)}, {"start": "loftq"}])
def test_the_file_loads_in_peft_on_the_base_that_transformers_quantises(tiny_any: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    from peft import PeftModel

    options = qlora.Options.model_validate({"rank": 4, "alpha": 8, **changes})
    model = ours(tiny_any, qlora, options).eval()
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(torch.empty_like(p).normal_(0, 0.1, generator=torch.Generator().manual_seed(p.numel())))
    qlora.save(model, options, tmp_path, "base")
    again = ours(tiny_any, qlora, options)
    qlora.load(again, tmp_path)
    assert all(torch.equal(p, trainable(again)[n]) for n, p in trainable(model).items())
    used = qlora.for_use(options)
    plain = ours(tiny_any, qlora, used)
    qlora.load(plain, tmp_path)
    with torch.no_grad():
        mine = model(input_ids=IDS).logits
        theirs = PeftModel.from_pretrained(quantised_by_transformers(tiny_any), str(tmp_path)).eval()(input_ids=IDS).logits
        assert torch.equal(plain.eval()(input_ids=IDS).logits, mine)
        assert (mine - load_model(tiny_any)(input_ids=IDS).logits).abs().max() > 0.01
    torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-5)


def test_all_linear_layers_but_the_head_are_quantised_whatever_the_targets(tiny_phi3: Path) -> None:
    model = ours(tiny_phi3, qlora, qlora.Options(targets=("o_proj",)))
    names = {n.removesuffix(".base").rpartition(".")[2] for n, _ in _nf4.quantised(model)}
    assert names == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert type(model.lm_head) is torch.nn.Linear
    assert {n.rpartition(".")[2] for n in trainable(model)} == {"lora_A", "lora_B"}


def test_the_weights_take_about_a_quarter_of_their_bf16_bytes(tmp_path: Path) -> None:
    from tiny import tiny_model

    folder = tiny_model(tmp_path / "wide", "llama", hidden_size=512, intermediate_size=1024, num_hidden_layers=1)
    dense = ours(folder, qlora, PLAIN, "bfloat16")
    for double, low, high in ((True, 0.255, 0.275), (False, 0.28, 0.29)):
        options = qlora.Options(rank=4, double_quantisation=double)
        model = ours(folder, qlora, options, "bfloat16")
        packed = sum(layer.nbytes for _, layer in _nf4.quantised(model))
        plain = sum(2 * layer.in_features * layer.out_features for _, layer in _nf4.quantised(model))
        assert low < packed / plain < high
        # Nothing dense is left beside it.
        held = sum(p.nbytes for n, p in model.named_parameters() if ".base." in n) + sum(b.nbytes for b in model.buffers())
        assert held < packed
    assert plain == sum(2 * layer.in_features * layer.out_features for _, layer in _nf4.quantised(dense))


def test_evaluation_in_float32_is_float32(tiny_llama: Path) -> None:
    """bitsandbytes' own layer repacks itself for bfloat16 at the first evaluation on some CPUs."""
    model = ours(tiny_llama, qlora, PLAIN)
    with torch.no_grad():
        training = model.train()(input_ids=IDS).logits
        assert torch.equal(model.eval()(input_ids=IDS).logits, training)
        base = qlora.dequantised(load_model(tiny_llama), PLAIN, "float32")
        torch.testing.assert_close(base(input_ids=IDS).logits, training, atol=1e-5, rtol=1e-5)
        assert not list(_nf4.quantised(base))


@pytest.mark.parametrize("dora", [False, True])
def test_gradient_checkpointing_and_dropout_go_through_the_quantised_layers(tiny_llama: Path, dora: bool) -> None:
    def gradients(dropout: float, again: bool) -> list[torch.Tensor]:
        model = ours(tiny_llama, qlora, qlora.Options(rank=4, dora=dora, dropout=dropout), stirred=True).train()
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        torch.manual_seed(0)
        model(input_ids=IDS).logits.square().mean().backward()
        return [p.grad for p in trainable(model).values()]

    for dropout in (0.0, 0.3):
        for one, other in zip(gradients(dropout, False), gradients(dropout, True), strict=True):
            torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
            assert one.abs().max() > 0


def test_four_bits_are_those_of_the_training_also_where_the_model_is_loaded_finer(tiny_llama: Path) -> None:
    coarse = ours(tiny_llama, qlora, PLAIN, "bfloat16")
    fine = qlora.attach(load_model(tiny_llama), PLAIN, 0, quantise_from="bfloat16")
    for (name, one), (_, other) in zip(_nf4.quantised(coarse), _nf4.quantised(fine), strict=True):
        assert torch.equal(one.weight.data, other.weight.data), name
        assert torch.equal(one.dense(torch.float32), other.dense(torch.float32)), name


def test_loftq_begins_nearer_to_the_whole_weight_and_as_near_as_the_rank_allows(tiny_llama: Path) -> None:
    options = qlora.Options(rank=8, alpha=16, start="loftq")
    whole = load_model(tiny_llama)
    model = ours(tiny_llama, qlora, options)
    for name, layer in _adapter_file.adapted(model).items():
        weight = whole.get_submodule(name).weight.double().numpy()
        lost = weight - layer.base.dense(torch.float32).double().numpy()  # type: ignore[operator]
        left = lost - options.scale * (layer.lora_B.double() @ layer.lora_A.double()).detach().numpy()
        best = np.linalg.svd(lost, compute_uv=False)[8:]
        assert np.linalg.norm(left) == pytest.approx(np.linalg.norm(best), rel=1e-4)
        assert np.linalg.norm(left) < 0.95 * np.linalg.norm(lost)
    with pytest.raises(InputError, match=r"loftq.*at most 32.*lower it"):
        ours(tiny_llama, qlora, qlora.Options(rank=33, start="loftq"))


def test_without_bitsandbytes_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"tunery\[qlora\]"):
        qlora.require()


def test_what_it_does_not_go_with_has_a_reason_and_a_way_out() -> None:
    assert {s for r in qlora.REFUSES for s in r.when["sharding"]} == {"zero3", "fsdp"}
    assert all(r.source.startswith("https://") and r.instead == "sharding: zero2" for r in qlora.REFUSES)
