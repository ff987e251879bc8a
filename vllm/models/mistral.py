"""Mistral 7B: every layer may have a sliding window."""

from __future__ import annotations

from vllm.layers.attention import SelfAttention
from vllm.models.decoder import Decoder
from vllm.models.registry import register


@register("MistralForCausalLM")
class Mistral(Decoder):
    def attention(self, i: int) -> SelfAttention:
        return self.self_attention(window=self.hf_config.sliding_window)
