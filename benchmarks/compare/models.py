"""Checkpoints with random weights in the shapes of known models, written where they are missing.

Speed depends on shapes and not on what the numbers say, so nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTES_PER_WEIGHT = 2  # bfloat16
SHARD_BYTES = 2 << 30
NUM_SPECIAL_TOKENS = 2


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What decides the cost of a decoder with rotary attention and gated MLPs."""

    name: str
    model_type: str  # qwen3, llama or qwen3_moe
    hidden: int
    intermediate: int  # of one expert where there are any
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    rope_theta: float
    norm_eps: float
    num_experts: int = 0
    experts_per_token: int = 0

    @property
    def has_qk_norm(self) -> bool:
        return self.model_type.startswith("qwen3")

    @property
    def attention_weights(self) -> int:
        """Of one layer."""
        return self.hidden * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)

    @property
    def mlp_weights(self) -> int:
        """Of one layer, of all experts, the router included."""
        dense = 3 * self.hidden * self.intermediate
        return dense * self.num_experts + self.hidden * self.num_experts or dense

    @property
    def active_mlp_weights(self) -> int:
        """Of one layer, as many as one token meets."""
        dense = 3 * self.hidden * self.intermediate
        return dense * self.experts_per_token + self.hidden * self.num_experts or dense

    @property
    def num_weights(self) -> int:
        """Of the matrices; embedding and output are one."""
        return self.num_layers * (self.attention_weights + self.mlp_weights) + self.head_weights

    @property
    def head_weights(self) -> int:
        return self.vocab * self.hidden

    @property
    def weight_bytes(self) -> int:
        return self.num_weights * BYTES_PER_WEIGHT

    @property
    def decode_bytes(self) -> int:
        """Weights read to decode one token at batch 1."""
        layer = self.attention_weights + self.active_mlp_weights
        return (self.num_layers * layer + self.head_weights) * BYTES_PER_WEIGHT

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * BYTES_PER_WEIGHT

    def prefill_flops(self, num_tokens: int) -> int:
        """Of matrix products and causal attention for one prompt; one row of logits."""
        layer = 2 * num_tokens * (self.attention_weights + self.active_mlp_weights)
        attention = 2 * num_tokens * num_tokens * self.num_heads * self.head_dim
        return self.num_layers * (layer + attention) + 2 * self.head_weights


# The order is that of the positions of the fields: hidden, intermediate, layers, heads, KV heads,
# head size, vocabulary, rotary base, epsilon, experts, experts per token.
SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("qwen3-0.6b", "qwen3", 1024, 3072, 28, 16, 8, 128, 151_936, 1e6, 1e-6),
        ModelShape("llama-3.2-1b", "llama", 2048, 8192, 16, 32, 8, 64, 128_256, 5e5, 1e-5),
        ModelShape("moe-0.5b", "qwen3_moe", 512, 512, 16, 16, 4, 64, 65_536, 1e6, 1e-6, 32, 4),
        # Prompts take a good part of the time, and a run of many seconds.
        ModelShape("small", "qwen3", 384, 1024, 8, 6, 2, 64, 16_384, 1e6, 1e-6),
        # Heads of 32: the smallest that every engine has a kernel for.
        ModelShape("tiny", "qwen3", 64, 128, 2, 2, 1, 32, 16_384, 1e6, 1e-6),
    )
}
ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def ensure(shape: ModelShape, folder: Path) -> Path:
    """The checkpoint of a shape in `folder`, written first unless it is there and whole."""
    path = folder / shape.name
    written = path / "config.json"
    # The configuration is written last: a checkpoint that has it is complete.
    if not written.exists() or json.loads(written.read_text()) != config(shape):
        path.mkdir(parents=True, exist_ok=True)
        write_tokenizer(shape, path)
        write_weights(shape, path)
        _write_json(path / "generation_config.json", {"eos_token_id": 1, "bos_token_id": 0})
        _write_json(written, config(shape))
    return path


def config(shape: ModelShape) -> dict[str, Any]:
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[shape.model_type]],
        "model_type": shape.model_type,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if shape.num_experts:
        values |= {
            "num_experts": shape.num_experts,
            "num_experts_per_tok": shape.experts_per_token,
            "moe_intermediate_size": shape.intermediate,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    return values


def tensor_shapes(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a checkpoint's tensors."""
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    for layer in range(shape.num_layers):
        for name, size in _layer_shapes(shape):
            yield f"model.layers.{layer}.{name}.weight", size
    yield "model.norm.weight", (shape.hidden,)


def _layer_shapes(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    yield "input_layernorm", (shape.hidden,)
    yield "post_attention_layernorm", (shape.hidden,)
    yield "self_attn.q_proj", (queries, shape.hidden)
    yield "self_attn.k_proj", (keys, shape.hidden)
    yield "self_attn.v_proj", (keys, shape.hidden)
    yield "self_attn.o_proj", (shape.hidden, queries)
    if shape.has_qk_norm:
        yield "self_attn.q_norm", (shape.head_dim,)
        yield "self_attn.k_norm", (shape.head_dim,)
    blocks = [f"mlp.experts.{expert}" for expert in range(shape.num_experts)] or ["mlp"]
    if shape.num_experts:
        yield "mlp.gate", (shape.num_experts, shape.hidden)
    for block in blocks:
        yield f"{block}.gate_proj", (shape.intermediate, shape.hidden)
        yield f"{block}.up_proj", (shape.intermediate, shape.hidden)
        yield f"{block}.down_proj", (shape.hidden, shape.intermediate)


def write_weights(shape: ModelShape, path: Path) -> None:
    """Weights of deviation 0.02 and norms of one, from a fixed seed, in shards."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    shards = _shards(tensor_shapes(shape))
    placed: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for tensor_name, size in shard:
            if len(size) == 1:
                tensors[tensor_name] = torch.ones(size, dtype=torch.bfloat16)
            else:
                values = torch.randn(size, generator=generator).mul_(0.02)
                tensors[tensor_name] = values.to(torch.bfloat16)
            placed[tensor_name] = name
        save_file(tensors, str(path / name), metadata={"format": "pt"})
    index = {"metadata": {"total_size": shape.weight_bytes}, "weight_map": placed}
    _write_json(path / "model.safetensors.index.json", index)


def _shards(
    tensors: Iterator[tuple[str, tuple[int, ...]]],
) -> list[list[tuple[str, tuple[int, ...]]]]:
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, size in tensors:
        num_bytes = BYTES_PER_WEIGHT
        for length in size:
            num_bytes *= length
        if filled and filled + num_bytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, size))
        filled += num_bytes
    return shards


def write_tokenizer(shape: ModelShape, path: Path) -> None:
    """A byte-level BPE: two special tokens, all bytes, one merge, and words no text leads to.

    Every id decodes to text of its own, as ids of a trained vocabulary do. GGUF knows this kind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # The merge that BPE files must have makes the token that follows the bytes.
    merge = ("t", "h")
    words = ["<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "".join(merge)]
    words += [f"Ġw{number}" for number in range(len(words), shape.vocab)]
    vocabulary = {word: number for number, word in enumerate(words)}
    assert len(vocabulary) == shape.vocab, (len(vocabulary), shape.vocab)
    tokenizer = Tokenizer(models.BPE(vocabulary, [merge]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(word, special=True) for word in words[:NUM_SPECIAL_TOKENS]]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    _write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": words[0],
            "eos_token": words[1],
            "model_max_length": 8192,
            "clean_up_tokenization_spaces": False,
        },
    )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    # Replaced as a whole: others may be waiting for the file to appear.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(values, file, indent=1)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
