"""Llama 1 to 3.3 and what is built alike: CodeLlama, Yi, Vicuna, SmolLM."""

from __future__ import annotations

from torch import nn

from vllm.layers.attention import SelfAttention
from vllm.layers.mlp import GatedMLP
from vllm.models.decoder import Decoder
from vllm.models.registry import register


@register("LlamaForCausalLM", "LLaMAForCausalLM")
class Llama(Decoder):
    def attention(self, i: int) -> SelfAttention:
        bias = self.hf_config.attention_bias
        return self.self_attention(qkv_bias=bias, out_bias=bias)

    def mlp(self, i: int) -> nn.Module:
        hf = self.hf_config
        return GatedMLP(self.hidden, hf.intermediate_size, hf.hidden_act, self.context, hf.mlp_bias)
