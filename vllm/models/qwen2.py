"""Qwen2 and Qwen2.5: biases on q, k and v; the upper layers may have a sliding window."""

from __future__ import annotations

from vllm.layers.attention import SelfAttention
from vllm.models.decoder import Decoder
from vllm.models.registry import register


@register("Qwen2ForCausalLM")
class Qwen2(Decoder):
    def attention(self, i: int) -> SelfAttention:
        return self.self_attention(qkv_bias=True, window=self.window(i))
