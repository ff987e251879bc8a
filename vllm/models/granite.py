"""Granite 3: Llama with multipliers on embeddings, residuals, attention scores and logits."""

from __future__ import annotations

from torch import Tensor, nn

from vllm.device.launch import TokenInputs
from vllm.layers.attention import SelfAttention
from vllm.layers.logits import LogitsTransform
from vllm.models.decoder import DecoderLayer
from vllm.models.llama import Llama
from vllm.models.registry import register


@register("GraniteForCausalLM")
class Granite(Llama):
    def layer(self, i: int) -> nn.Module:
        return DecoderLayer(
            norm=self.make_norm(),
            attention=self.attention(i),
            mlp_norm=self.make_norm(),
            mlp=self.mlp(i),
            residual_scale=self.hf_config.residual_multiplier,
        )

    def attention(self, i: int) -> SelfAttention:
        bias, scale = self.hf_config.attention_bias, self.hf_config.attention_multiplier
        return self.self_attention(qkv_bias=bias, out_bias=bias, scale=scale)

    def embed_inputs(self, inputs: TokenInputs) -> Tensor:
        return self.embed(inputs.token_ids) * self.hf_config.embedding_multiplier

    def logits_transform(self) -> LogitsTransform:
        return LogitsTransform(divisor=self.hf_config.logits_scaling)
