"""A GGUF file of a small Llama, written as llama.cpp's converter does: same tensor names, same permutation of q and k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_gguf(model: Path, file: Path, quantisation: str = "F32", pre_tokenizer: str = "smollm") -> Path:
    """Write the Llama folder `model` as GGUF; matrices in `quantisation` (F32, Q8_0 or Q4_1), norms in F32."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((model / "config.json").read_text())
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    _write_tokenizer(writer, tokenizer, config, (model / "chat_template.jinja").read_text(), pre_tokenizer)
    for name, tensor in load_file(model / "model.safetensors").items():
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(name.split(".")[-2])
        if heads:  # rotary pairs: halves in transformers, neighbours in GGUF
            rows, columns = tensor.shape
            tensor = tensor.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        kind = gguf.GGMLQuantizationType[quantisation if tensor.ndim == 2 else "F32"]
        writer.add_tensor(_gguf_name(name), gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_tokenizer(writer: Any, tokenizer: dict[str, Any], config: dict[str, Any], template: str, pre_tokenizer: str) -> None:
    import gguf

    vocabulary = {**tokenizer["model"]["vocab"], **{a["content"]: a["id"] for a in tokenizer["added_tokens"]}}
    special = {a["content"] for a in tokenizer["added_tokens"]}
    tokens = [token for token, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
    tokens += [f"<unused{n}>" for n in range(config["vocab_size"] - len(tokens))]
    types = [
        gguf.TokenType.CONTROL if t in special else gguf.TokenType.UNUSED if t.startswith("<unused") else gguf.TokenType.NORMAL
        for t in tokens
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)


def _gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, *rest = name.split(".")
        return f"blk.{layer}.{_NAMES['.'.join(rest[:-1])]}.{rest[-1]}"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}[
        name
    ]
