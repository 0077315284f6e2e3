from __future__ import annotations

from pathlib import Path

from tunery.data.render import Renderer
from tunery.export.prompts import COUNT, LONGEST, proof_prompts
from tunery.models.load import load_tokenizer


def test_a_bare_model_gets_fifty_different_questions(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    prompts = proof_prompts(Renderer(tokenizer), 1024)
    assert len({tuple(p) for p in prompts}) == len(prompts) == COUNT
    assert all(tokenizer.decode(p).endswith("<|im_start|>assistant\n") for p in prompts)


def test_the_runs_own_prompts_come_first_once_each_and_cut_at_their_end(tiny_llama: Path) -> None:
    renderer = Renderer(load_tokenizer(tiny_llama))
    own = [[5, 6], [5, 6], [], list(range(3, 403)) * 2, [7]]
    prompts = proof_prompts(renderer, 1024, own)
    assert prompts[:3] == [[5, 6], (list(range(3, 403)) * 2)[-LONGEST:], [7]]
    assert len(prompts) == COUNT
    assert proof_prompts(renderer, 1024, [[n] for n in range(3, 200)]) == [[n] for n in range(3, 3 + COUNT)]


def test_the_continuation_always_fits(tiny_llama: Path) -> None:
    prompts = proof_prompts(Renderer(load_tokenizer(tiny_llama)), 48, [[5] * 400])
    assert len(prompts) > 10
    assert max(len(p) for p in prompts) == 48 - 32


def test_a_model_without_a_template_continues_plain_text(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = None
    prompts = proof_prompts(Renderer(tokenizer), 1024)
    assert len(prompts) == COUNT
    assert tokenizer.decode(prompts[0]) == "Explain a bicycle to a child."
