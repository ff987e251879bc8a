"""Gemma 2: norms on both sides of every block, alternating windows, soft-capped scores."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from vllm.device.attention import AttentionMetas
from vllm.device.launch import TokenInputs
from vllm.layers.attention import SelfAttention
from vllm.layers.context import ModelContext
from vllm.layers.logits import LogitsTransform
from vllm.layers.mlp import GatedMLP
from vllm.layers.norm import GemmaRMSNorm
from vllm.layers.rope import Rope
from vllm.layers.weights import Rule
from vllm.models.decoder import MLP_WEIGHTS, OUTER_WEIGHTS, Decoder, attention_weights
from vllm.models.registry import register

# Checkpoint name of a norm -> ours.
NORMS = {
    "input_layernorm": "norm",
    "post_attention_layernorm": "attention_out_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_out_norm",
}


class SandwichLayer(nn.Module):
    """As DecoderLayer, with the blocks' outputs normalised too."""

    norm: GemmaRMSNorm
    attention_out_norm: GemmaRMSNorm
    mlp_norm: GemmaRMSNorm
    mlp_out_norm: GemmaRMSNorm

    def __init__(
        self, attention: nn.Module, mlp: nn.Module, norms: dict[str, GemmaRMSNorm]
    ) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = mlp
        for name, norm in norms.items():
            self.add_module(name, norm)

    def forward(
        self, x: Tensor, residual: Tensor, rope: Rope, metas: AttentionMetas
    ) -> tuple[Tensor, Tensor]:
        x, residual = self.norm.add(x, residual)
        x = self.attention_out_norm(self.attention(x, rope, metas))
        x, residual = self.mlp_norm.add(x, residual)
        return self.mlp_out_norm(self.mlp(x)), residual


@register("Gemma2ForCausalLM")
class Gemma2(Decoder):
    weights: ClassVar[tuple[Rule, ...]] = (
        *OUTER_WEIGHTS,
        *attention_weights(),
        *MLP_WEIGHTS,
        *(
            Rule(f"model.layers.{{layer}}.{theirs}.weight", f"layers.{{layer}}.{ours}.weight")
            for theirs, ours in NORMS.items()
        ),
    )

    def __init__(self, context: ModelContext) -> None:
        super().__init__(context)
        # Rounded to the model's dtype, as in training: sqrt(3072) is 55.5 in bfloat16.
        self.embedding_scale = torch.tensor(self.hidden**0.5, dtype=context.dtype).item()

    def layer(self, i: int) -> nn.Module:
        norms = {name: self.make_norm() for name in NORMS.values()}
        return SandwichLayer(self.attention(i), self.mlp(i), norms)

    def attention(self, i: int) -> SelfAttention:
        hf = self.hf_config
        return self.self_attention(
            scale=hf.query_pre_attn_scalar**-0.5,
            qkv_bias=hf.attention_bias,
            out_bias=hf.attention_bias,
            window=self.window(i),
            softcap=hf.attn_logit_softcapping or 0.0,
        )

    def mlp(self, i: int) -> nn.Module:
        hf = self.hf_config
        return GatedMLP(self.hidden, hf.intermediate_size, hf.hidden_activation, self.context)

    def make_norm(self) -> GemmaRMSNorm:
        return GemmaRMSNorm(self.hidden, self.hf_config.rms_norm_eps, self.context)

    def embed_inputs(self, inputs: TokenInputs) -> Tensor:
        return self.embed(inputs.token_ids) * self.embedding_scale

    def logits_transform(self) -> LogitsTransform:
        return LogitsTransform(softcap=self.hf_config.final_logit_softcapping or 0.0)
