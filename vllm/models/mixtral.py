"""Mixtral: Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from vllm.layers.attention import SelfAttention
from vllm.layers.moe import moe_type
from vllm.layers.weights import Rule
from vllm.models.decoder import (
    NORM_WEIGHTS,
    OUTER_WEIGHTS,
    Decoder,
    attention_weights,
    experts_weights,
)
from vllm.models.registry import register
from vllm.ops.moe import Routing

# Checkpoints as published, and as transformers 5 names the modules.
BLOCKS = ("model.layers.{layer}.block_sparse_moe", "model.layers.{layer}.mlp")


@register("MixtralForCausalLM")
class Mixtral(Decoder):
    weights: ClassVar[tuple[Rule, ...]] = (
        *OUTER_WEIGHTS,
        *NORM_WEIGHTS,
        *attention_weights(),
        *(Rule(f"{block}.gate.{{w}}", "layers.{layer}.mlp.router.{w}") for block in BLOCKS),
        *(
            rule
            for block in BLOCKS
            for rule in experts_weights(
                f"{block}.experts", "layers.{layer}.mlp.experts", ("w1", "w3", "w2")
            )
        ),
    )

    def attention(self, i: int) -> SelfAttention:
        return self.self_attention(window=self.hf_config.sliding_window)

    def mlp(self, i: int) -> nn.Module:
        hf = self.hf_config
        routing = Routing(hf.num_local_experts, hf.num_experts_per_tok, renormalise=True)
        moe = moe_type(self.context)
        return moe(routing, self.hidden, hf.intermediate_size, hf.hidden_act, self.context)
