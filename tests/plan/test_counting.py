"""Counts against formulas by hand, and against what torch really keeps."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_config

from tunery import methods, tasks
from tunery.kernels import library
from tunery.plan._counting import _Alive, count, height, saved_bytes
from tunery.plan.workload import Count
from tunery.train import attention, forward, learners
from tunery.train._block_attention import cut

TOKENS, LAYERS = 96, 5
HIDDEN, INTERMEDIATE, HEADS, KEY_VALUES, SIZE, VOCABULARY = 128, 256, 4, 2, 128, 512
"""All sides of matrices are above the 64 at which a product counts as thin; the tokens are a length to which no pack needs filling up."""


def config(layers: int = LAYERS) -> Any:
    wide = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "head_dim": SIZE, "num_hidden_layers": layers}
    found = tiny_config("llama", **wide)
    found.use_cache = False
    return found


def builder(method: str, dtype: torch.dtype = torch.float32, checkpointing: bool = False) -> Any:
    attention.register()
    chosen = methods.get(method)

    def build(config: Any) -> Any:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="tunery").requires_grad_(False)
        model = chosen.attach(model, chosen.Options(), 0).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        forward._compared.add(model)
        return model

    return build


def loss(model: Any) -> torch.Tensor:
    row = SimpleNamespace(tokens=np.arange(TOKENS + 1, dtype=np.int32), weights=np.r_[0, np.ones(TOKENS)].astype(np.float32))
    learner = learners.get(tasks.get("text"))
    return learner.loss(model, next(iter(learner.batches(model, [row]))))[0]


def counted(method: str, layers: int = LAYERS) -> Count:
    return count(config(layers), builder(method), [loss])[0]


def test_matrix_products_of_full_tuning_are_those_of_the_formula() -> None:
    heads = HEADS * SIZE, KEY_VALUES * SIZE
    layer = HIDDEN * (2 * heads[0] + 2 * heads[1] + 3 * INTERMEDIATE)
    head = HIDDEN * VOCABULARY
    # Forward once, backward twice; the head's gradient is made with its logits.
    by_hand = 2 * TOKENS * 3 * (LAYERS * layer + head)
    found = counted("full")
    assert found.flops("matrix") == by_hand
    assert found.flops("thin") == 2 * head  # the logits of one position, which the model's own forward makes


def test_attention_is_two_products_forward_and_five_backward() -> None:
    """Of the pairs in the blocks that the queries are cut into, which hold all that a causal row needs."""
    blocks = cut(np.tri(TOKENS, dtype=bool), HEADS // KEY_VALUES, torch.float32, torch.device("cpu"))
    pairs = sum(g.keys.numel() * blocks.size for g in blocks.groups)
    assert pairs > TOKENS * (TOKENS + 1) // 2
    product = 2 * HEADS * pairs * SIZE
    found = counted("full")
    assert found.flops("attention") == LAYERS * 2 * product
    assert found.flops("attention_backward") == LAYERS * 5 * product


@pytest.mark.skipif(not library.tiles(), reason="this processor does not multiply bfloat16")
def test_attention_in_tiles_is_counted_by_pairs_of_blocks() -> None:
    """Of 96 tokens in a row, six pairs of blocks of 32."""
    found = count(config(), builder("lora", torch.bfloat16), [loss])[0]
    product = 2 * HEADS * 6 * 32 * 32 * SIZE
    assert found.flops("attention") == LAYERS * 2 * product
    assert found.flops("attention_backward") == LAYERS * 5 * product


@pytest.mark.parametrize("method", ["full", "lora", "dora", "ia3"])
def test_more_layers_cost_what_the_line_says(method: str) -> None:
    """Counted at five layers without extrapolation, the operations are those of one and two layers carried on."""
    from tunery.plan._counting import _one

    with torch.device("meta"):
        whole = _one(builder(method)(config()), loss, None)
    line = counted(method)
    assert line.operations == whole.operations
    assert line.forward == whole.forward
    assert line.saved_bytes == whole.saved_bytes


@pytest.mark.parametrize(("method", "checkpointing"), [("full", False), ("lora", False), ("dora", False), ("lora", True)])
def test_saved_bytes_are_those_of_a_real_run(method: str, checkpointing: bool) -> None:
    """The attention of a CPU keeps its outputs in other strides, which is all that may differ."""
    build = builder(method, checkpointing=checkpointing)
    model = build(config())
    _, real = saved_bytes(model, loss)
    found = count(config(), build, [loss])[0]
    assert found.saved_bytes == pytest.approx(real, rel=0.02)


def test_checkpointing_keeps_less_and_computes_more() -> None:
    plain, again = (count(config(), builder("lora", checkpointing=c), [loss])[0] for c in (False, True))
    assert again.saved_bytes < plain.saved_bytes / 3
    assert again.flops() > plain.flops() * 1.2


def test_torch_s_own_attention_is_there_afterwards() -> None:
    before = torch.nn.functional.scaled_dot_product_attention
    counted("lora")
    assert torch.nn.functional.scaled_dot_product_attention is before


def test_the_height_is_what_was_alive_by_hand() -> None:
    """Two tensors are alive at once, then one is dropped before the next: storages count while a tensor is in them, views not again."""
    with _Alive(set(), 100) as alive:
        a = torch.empty(10, 100, device="meta")
        b = (a + 1).view(1000)
        del b
        c = a[:5].exp()  # 2000 bytes beside a's 4000
    assert (alive.peak, alive.logits_at_peak, alive.alive) == (8000, 8000, 6000)
    del a, c
    assert alive.alive == 0


@pytest.mark.parametrize(("method", "autocast"), [("lora", False), ("full", False), ("full", True)])
def test_the_height_on_shapes_is_that_of_a_real_batch(method: str, autocast: bool) -> None:
    """The real run by the same tracking on the CPU, where torch's own autocast acts; attention's own buffers may differ."""
    build = builder(method)
    with torch.device("meta"):
        shapes = build(config())
    found = height(shapes, loss, VOCABULARY, again=False, autocast=torch.bfloat16 if autocast else None)
    model = build(config())
    fixed = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    with _Alive(fixed, VOCABULARY, "cpu") as alive:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss(model)
        value.backward()
    assert found.total == pytest.approx(alive.peak, rel=0.03)
    assert found.total > 0


def test_gradients_that_are_there_already_are_no_part_of_the_height() -> None:
    with torch.device("meta"):
        model = builder("full")(config())
    learned = sum(p.numel() * 4 for p in model.parameters())
    first, again = (height(model, loss, VOCABULARY, again=a).total for a in (False, True))
    assert first > learned > first - again > 0


def test_autocast_and_the_mask_are_torch_s_and_transformers_own_afterwards() -> None:
    from transformers import masking_utils

    before = torch.nn.functional.linear, torch.matmul, torch.Tensor.__matmul__, masking_utils.fast_all
    with torch.device("meta"):
        model = builder("full")(config())
    height(model, loss, VOCABULARY, again=False, autocast=torch.bfloat16)
    assert before == (torch.nn.functional.linear, torch.matmul, torch.Tensor.__matmul__, masking_utils.fast_all)
