"""Qwen3-MoE: Qwen3 with a mixture of experts in most layers."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from vllm.layers.attention import SelfAttention
from vllm.layers.mlp import GatedMLP
from vllm.layers.moe import moe_type
from vllm.layers.weights import Rule
from vllm.models.decoder import DECODER_WEIGHTS, GATED_NAMES, Decoder, experts_weights
from vllm.models.qwen3 import QK_NORM_WEIGHTS
from vllm.models.registry import register
from vllm.ops.moe import Routing

THEIRS, OURS = "model.layers.{layer}.mlp", "layers.{layer}.mlp"


@register("Qwen3MoeForCausalLM")
class Qwen3Moe(Decoder):
    weights: ClassVar[tuple[Rule, ...]] = (
        *DECODER_WEIGHTS,
        *QK_NORM_WEIGHTS,
        Rule(f"{THEIRS}.gate.{{w}}", f"{OURS}.router.{{w}}"),
        *experts_weights(f"{THEIRS}.experts", f"{OURS}.experts", GATED_NAMES),
    )

    def attention(self, i: int) -> SelfAttention:
        hf = self.hf_config
        return self.self_attention(
            qkv_bias=hf.attention_bias,
            out_bias=hf.attention_bias,
            window=hf.sliding_window,
            qk_norm_eps=hf.rms_norm_eps,
        )

    def mlp(self, i: int) -> nn.Module:
        hf = self.hf_config
        if i in hf.mlp_only_layers or (i + 1) % hf.decoder_sparse_step:
            return GatedMLP(self.hidden, hf.intermediate_size, hf.hidden_act, self.context)
        routing = Routing(
            hf.num_experts, hf.num_experts_per_tok, renormalise=bool(hf.norm_topk_prob)
        )
        moe = moe_type(self.context)
        return moe(routing, self.hidden, hf.moe_intermediate_size, hf.hidden_act, self.context)
