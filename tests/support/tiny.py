"""Small random models with a real tokenizer, so that most tests need no download and no waiting.

    folder = tiny_model(tmp_path / "phi", "phi3")      # an ordinary Hugging Face folder, about 0.5 MB
    folder = tiny_model(tmp_path / "bert", "bert")     # an encoder, with a WordPiece tokenizer

The decoders' tokenizer is a byte-level BPE with ChatML's special tokens and SmolLM2's chat template, which writes a system turn
of its own when the first message is not one. In a test take the fixtures `tiny_llama`, `tiny_phi3` and `tiny_qwen`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

ARCHITECTURES = ("llama", "phi3", "qwen3")
"""The decoders."""

VOCABULARY = 512
CONTEXT = 1024

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n"
    "' + message['content'] + '<|im_end|>' + '\n"
    "'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
    "' }}{% endif %}"
)

_SUBJECTS = ("the cat", "a river", "my friend", "the model", "a small house", "the teacher", "our garden", "the train")
_VERBS = ("likes", "reads", "answers", "follows", "learns", "finds", "sees", "writes about")
_OBJECTS = ("a long book", "the question", "cold water", "an old song", "the headline", "two numbers", "a green tree", "the news")
_WORDS = (
    "system",
    "user",
    "assistant",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "yes",
    "no",
    "positive",
    "negative",
)


def training_text(lines: int = 400, seed: int = 0) -> list[str]:
    """Plain English sentences, the same for the same seed."""
    rng = random.Random(seed)
    sentences = [f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)}.".capitalize() for _ in range(lines)]
    return [*sentences, *_WORDS * 20]


def tiny_tokenizer() -> Any:
    """A tokenizer of 440 tokens (the models have 512 rows: padded, as Phi's are); eos and pad are both `<|im_end|>`, as in SmolLM2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def tiny_word_pieces() -> Any:
    """BERT's kind of tokenizer: lower case, word pieces, `[CLS]` before a text and `[SEP]` after it."""
    import string

    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Not by the library's trainer, which numbers pieces in the order of a hash table: another one in each process.
    words = {word for line in training_text() for word in line.lower().replace(".", " ").replace(",", " ").split()}
    characters = set(string.ascii_lowercase + string.digits + string.punctuation)
    endings = {f"##{piece}" for piece in characters | {"er", "es", "ing", "ire", "ly", "or"}}
    pieces = [*special, *sorted(characters | words | endings)]
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", special.index("[SEP]")), ("[CLS]", special.index("[CLS]")))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]"
    )


def tiny_config(architecture: str, **changes: Any) -> Any:
    """A transformers configuration: hidden 64, 2 layers, 4 heads, 2 key/value heads, context 1024."""
    from transformers import LlamaConfig, Phi3Config, Qwen3Config

    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.05,
    }
    own: dict[str, tuple[type, dict[str, Any]]] = {
        "llama": (LlamaConfig, {"tie_word_embeddings": True}),
        "phi3": (Phi3Config, {"tie_word_embeddings": False, "original_max_position_embeddings": CONTEXT}),
        "qwen3": (Qwen3Config, {"tie_word_embeddings": False, "head_dim": 16}),
    }
    config, settings = own[architecture]
    return config(**{**common, **settings, **changes})


def tiny_bert_config(**changes: Any) -> Any:
    """An encoder's configuration: hidden 64, 2 layers, 4 heads, context 1024."""
    from transformers import BertConfig

    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.05,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BertConfig(**{**settings, **changes})


def tiny_model(folder: Path, architecture: str, seed: int = 0, **changes: Any) -> Path:
    """Save a random float32 model and its tokenizer in `folder`; the same seed gives the same weights.

    `architecture` is `llama` (tied embeddings), `phi3` (fused qkv and gate/up), `qwen3` (normed queries and keys) or `bert` (an encoder,
    saved under its masked-word head as published ones are); `changes` override keys of the configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    if architecture == "bert":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = AutoModelForMaskedLM.from_config(tiny_bert_config(**changes), dtype=torch.float32)
        folder.mkdir(parents=True, exist_ok=True)
        encoder.save_pretrained(folder)
        tiny_word_pieces().save_pretrained(folder)
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, **changes), dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
