"""Tokenizers with the chat templates of the common model families, on a small real vocabulary."""

from __future__ import annotations

from functools import cache
from typing import Any

from tiny import CHAT_TEMPLATE, training_text

CHATML_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n' }}{%- endif %}"
    "{{- 'Tools:\n' }}{%- for tool in tools %}{{- tool | tojson + '\n' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if not (loop.first and message.role == 'system') %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- '<tool_call>\n{\"name\": \"' + call.function.name + '\", ' }}"
    "{{- '\"arguments\": ' + call.function.arguments | tojson + '}\n</tool_call>' }}"
    "{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

LLAMA3 = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)

PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

QWEN3 = (
    "{%- set ns = namespace(last=0) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set text = m.content %}{%- set thought = '' %}"
    "{%- if m.role == 'assistant' and '</think>' in text %}{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set text = text.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{- '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + text + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

ALPACA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Response:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)


LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 and Qwen divide text before merging; white space and punctuation run on over line breaks."""


def _corpus() -> list[str]:
    """Sentences, and line breaks, spaces and punctuation in runs, so that the vocabulary merges them as real ones do."""
    runs = ["\n", "\n\n", "\n\n\n", " \n", "\n ", "  ", "   ", "\t", ":\n", ".\n\n", "\u00e9", "日", "😀"]
    return [*training_text(), *[f"a{first}{second}b" for first in runs for second in runs for _ in range(5)]]


def _byte_tokenizer(split: str | None) -> Any:
    """Byte-level BPE, divided as in GPT-2 and SmolLM2 (None), or by a pattern."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        steps = [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>")
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _metaspace_tokenizer() -> Any:
    """As Llama 2's and Phi-3's: a space is put before the first word, and Phi-3's role tokens swallow the white space after them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    special = ["<unk>", "<s>", "</s>", *[f"<0x{n:02X}>" for n in range(256)]]
    tokenizer.train_from_iterator(_corpus(), trainers.BpeTrainer(vocab_size=1000, special_tokens=special, show_progress=False))
    # Byte tokens are ordinary vocabulary in such tokenizers; training can only list them as special ones.
    import json

    plain = json.loads(tokenizer.to_str())
    plain["added_tokens"] = [t for t in plain["added_tokens"] if not t["content"].startswith("<0x")]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(plain)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    names = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    wrapped.add_special_tokens({"additional_special_tokens": [AddedToken(n, rstrip=True, normalized=False, special=True) for n in names]})
    return wrapped


@cache
def make_tokenizer(name: str) -> Any:
    """smollm2, tools, llama3, phi3, qwen3, alpaca; without a template: base, base-bos (adds a BOS), base-metaspace (as Llama 2's)."""
    from tokenizers import processors

    if name in ("phi3", "base-metaspace"):
        tokenizer = _metaspace_tokenizer()
        tokenizer.chat_template = PHI3 if name == "phi3" else None
        return tokenizer
    tokenizer = _byte_tokenizer(LLAMA3_SPLIT if name in ("llama3", "qwen3", "alpaca", "base-bos") else None)
    if name == "tools":
        tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
        tokenizer.chat_template = CHATML_TOOLS
    elif name == "llama3":
        tokens = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        tokenizer.bos_token, tokenizer.eos_token = "<|begin_of_text|>", "<|eot_id|>"
        _add_bos(tokenizer, processors)
        tokenizer.chat_template = LLAMA3
    elif name == "qwen3":
        tokenizer.add_tokens(["<think>", "</think>"])
        tokenizer.eos_token = "<|im_end|>"
        tokenizer.chat_template = QWEN3
    elif name == "alpaca":
        tokenizer.bos_token, tokenizer.eos_token = "<|endoftext|>", "<|endoftext|>"
        tokenizer.chat_template = ALPACA
    elif name.startswith("base"):
        tokenizer.chat_template = None
        tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|endoftext|>"
        if name == "base-bos":
            _add_bos(tokenizer, processors)
    return tokenizer


def _add_bos(tokenizer: Any, processors: Any) -> None:
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
