"""A checkpoint as GGUF in bfloat16, for llama.cpp.

python convert_gguf.py CHECKPOINT TARGET
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import safe_open

ARCHITECTURES = {"qwen3": "qwen3", "llama": "llama", "qwen3_moe": "qwen3moe"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PROJECTIONS = ("gate", "up", "down")


def main() -> None:
    checkpoint, target = map(Path, sys.argv[1:])
    config = json.loads((checkpoint / "config.json").read_text())
    part = target.with_name(target.name + ".part")
    writer = gguf.GGUFWriter(part, ARCHITECTURES[config["model_type"]])
    write_settings(writer, config)
    write_tokenizer(writer, json.loads((checkpoint / "tokenizer.json").read_text()))
    for name, tensor in tensors(checkpoint, config):
        add(writer, name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)


def write_settings(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_name(config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    if experts := config.get("num_experts"):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    kinds = [gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word in words]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def tensors(checkpoint: Path, config: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """GGUF's names and tensors; the experts of a layer are stacked."""
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {name: safe_open(checkpoint / name, "pt") for name in sorted(set(index.values()))}

    def tensor(name: str) -> torch.Tensor:
        return shards[index[name]].get_tensor(name)

    yield "token_embd.weight", tensor("model.embed_tokens.weight")
    yield "output_norm.weight", tensor("model.norm.weight")
    for layer in range(config["num_hidden_layers"]):
        source, target = f"model.layers.{layer}", f"blk.{layer}"
        for theirs, ours in LAYER_NAMES.items():
            name = f"{source}.{theirs}.weight"
            if name in index:
                yield f"{target}.{ours}.weight", rotated(tensor(name), theirs, config)
        if experts := config.get("num_experts"):
            for kind in PROJECTIONS:
                parts = [
                    tensor(f"{source}.mlp.experts.{expert}.{kind}_proj.weight")
                    for expert in range(experts)
                ]
                yield f"{target}.ffn_{kind}_exps.weight", torch.stack(parts)


def rotated(tensor: torch.Tensor, name: str, config: dict[str, Any]) -> torch.Tensor:
    """Rows in the order of llama.cpp, which rotates neighbours, not halves, in Llama's heads."""
    heads = {
        "self_attn.q_proj": config["num_attention_heads"],
        "self_attn.k_proj": config["num_key_value_heads"],
    }.get(name)
    if config["model_type"] != "llama" or heads is None:
        return tensor
    rows, columns = tensor.shape
    pairs = tensor.view(heads, 2, rows // heads // 2, columns).transpose(1, 2)
    return pairs.reshape(rows, columns)


def add(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor) -> None:
    if tensor.ndim == 1 or "ffn_gate_inp" in name:
        writer.add_tensor(name, tensor.float().numpy())
    else:
        raw = tensor.contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)


if __name__ == "__main__":
    main()
