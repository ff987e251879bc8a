"""Llama 1 to 3.3 and what is built alike: CodeLlama, Yi, Vicuna, SmolLM."""

from __future__ import annotations

from vllm.layers.mlp import GatedMLP
from vllm.layers.norm import RMSNorm
from vllm.models.decoder import Decoder, DecoderLayer
from vllm.models.registry import register


@register("LlamaForCausalLM", "LLaMAForCausalLM")
class Llama(Decoder):
    def layer(self, i: int) -> DecoderLayer:
        hf, context = self.hf_config, self.context
        bias = hf.attention_bias
        return DecoderLayer(
            norm=RMSNorm(self.hidden, hf.rms_norm_eps, context),
            attention=self.self_attention(qkv_bias=bias, out_bias=bias),
            mlp_norm=RMSNorm(self.hidden, hf.rms_norm_eps, context),
            mlp=GatedMLP(self.hidden, hf.intermediate_size, hf.hidden_act, context, hf.mlp_bias),
        )
