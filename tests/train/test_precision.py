"""The number format that `auto` chooses, on machines of every kind."""

from __future__ import annotations

import pytest
import torch

from tunery.train import precision


@pytest.mark.parametrize(
    ("amx", "avx512", "chosen", "said"),
    [
        (True, True, "bfloat16", "auto: bf16, this CPU has amx_bf16"),
        (False, True, "bfloat16", "auto: bf16, this CPU has avx512_bf16"),
        (False, False, "float32", "auto: fp32, this CPU has no bf16 instructions (AVX2)"),
    ],
)
def test_a_cpu_gets_bf16_where_it_has_instructions_for_it(
    amx: bool, avx512: bool, chosen: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert precision.choose("auto", "cpu") == (chosen, said)
    assert precision.choose("bf16", "cpu") == ("bfloat16", "as the recipe says")
    assert precision.choose("fp32", "cpu") == ("float32", "as the recipe says")
