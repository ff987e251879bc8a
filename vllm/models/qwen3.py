"""Qwen3: queries and keys are normalised per head."""

from __future__ import annotations

from typing import ClassVar

from vllm.layers.attention import SelfAttention
from vllm.layers.weights import Rule
from vllm.models.decoder import DECODER_WEIGHTS, Decoder
from vllm.models.registry import register

THEIRS, OURS = "model.layers.{layer}.self_attn", "layers.{layer}.attention"
QK_NORM_WEIGHTS = (
    Rule(f"{THEIRS}.q_norm.weight", f"{OURS}.q_norm.weight"),
    Rule(f"{THEIRS}.k_norm.weight", f"{OURS}.k_norm.weight"),
)


@register("Qwen3ForCausalLM")
class Qwen3(Decoder):
    weights: ClassVar[tuple[Rule, ...]] = (*DECODER_WEIGHTS, *QK_NORM_WEIGHTS)

    def attention(self, i: int) -> SelfAttention:
        hf = self.hf_config
        return self.self_attention(
            qkv_bias=hf.attention_bias,
            out_bias=hf.attention_bias,
            window=self.window(i),
            qk_norm_eps=hf.rms_norm_eps,
        )
