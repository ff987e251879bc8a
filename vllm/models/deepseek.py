"""DeepSeek-V2, V2-Lite and V3: latent attention, grouped routing, shared experts."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from vllm.errors import ConfigError
from vllm.layers.latent_attention import LatentSelfAttention
from vllm.layers.mlp import GatedMLP
from vllm.layers.moe import moe_type
from vllm.layers.rope import RopeParameters, Rotary
from vllm.layers.rope.frequencies import mscale
from vllm.layers.weights import Rule
from vllm.models.decoder import (
    GATED_NAMES,
    MLP_WEIGHTS,
    NORM_WEIGHTS,
    OUTER_WEIGHTS,
    Decoder,
    experts_weights,
    gated_mlp_weights,
)
from vllm.models.registry import register
from vllm.ops.moe import Routing
from vllm.ops.rotary import RotaryStyle

ATTN, OUR_ATTN = "model.layers.{layer}.self_attn", "layers.{layer}.attention"
MLP, OUR_MLP = "model.layers.{layer}.mlp", "layers.{layer}.mlp"
WEIGHTS = (
    *OUTER_WEIGHTS,
    *NORM_WEIGHTS,
    Rule(f"{ATTN}.q_proj.{{w}}", f"{OUR_ATTN}.inputs.{{w}}", ("q",)),
    Rule(f"{ATTN}.q_a_proj.{{w}}", f"{OUR_ATTN}.inputs.{{w}}", ("q",)),
    Rule(f"{ATTN}.kv_a_proj_with_mqa.{{w}}", f"{OUR_ATTN}.inputs.{{w}}", ("kv",)),
    Rule(f"{ATTN}.q_a_layernorm.weight", f"{OUR_ATTN}.q_norm.weight"),
    Rule(f"{ATTN}.q_b_proj.{{w}}", f"{OUR_ATTN}.q_expand.{{w}}"),
    Rule(f"{ATTN}.kv_a_layernorm.weight", f"{OUR_ATTN}.latent_norm.weight"),
    Rule(f"{ATTN}.kv_b_proj.{{w}}", f"{OUR_ATTN}.kv_expand.{{w}}"),
    Rule(f"{ATTN}.o_proj.{{w}}", f"{OUR_ATTN}.out.{{w}}"),
    *MLP_WEIGHTS,
    Rule(f"{MLP}.gate.e_score_correction_bias", f"{OUR_MLP}.router.correction"),
    Rule(f"{MLP}.gate.{{w}}", f"{OUR_MLP}.router.{{w}}"),
    *experts_weights(f"{MLP}.experts", f"{OUR_MLP}.experts", GATED_NAMES),
    *gated_mlp_weights(f"{MLP}.shared_experts", f"{OUR_MLP}.shared"),
)


class DeepSeek(Decoder):
    """What V2 and V3 share."""

    weights: ClassVar[tuple[Rule, ...]] = WEIGHTS

    def routing(self) -> Routing:
        raise NotImplementedError

    def rope_parameters(self) -> RopeParameters:
        return RopeParameters.from_config(self.hf_config, self.hf_config.qk_rope_head_dim)

    def make_rope(self) -> Rotary:
        facts = self.hf_config.to_dict()
        style: RotaryStyle = "interleaved" if facts.get("rope_interleave", True) else "neox"
        return Rotary(self.rope_parameters(), self.context, style)

    def attention(self, i: int) -> LatentSelfAttention:
        hf = self.hf_config
        if hf.attention_bias and hf.q_lora_rank is None:
            raise ConfigError(
                "attention_bias=true with q_lora_rank=null gives a bias to half of a projection, "
                "which our implementation does not have. Use --model-impl transformers."
            )
        assert isinstance(self.rope, Rotary)
        return LatentSelfAttention(hf, self.rope, self.scale(), self.context)

    def scale(self) -> float:
        """Scale of the scores. YaRN with mscale_all_dim raises the usual one."""
        hf, rope = self.hf_config, self.rope_parameters()
        usual = (hf.qk_nope_head_dim + hf.qk_rope_head_dim) ** -0.5
        weight = rope.number("mscale_all_dim", 0.0)
        return usual * mscale(rope.number("factor"), weight) ** 2 if weight else usual

    def mlp(self, i: int) -> nn.Module:
        hf, context = self.hf_config, self.context
        if i < hf.first_k_dense_replace:
            return GatedMLP(self.hidden, hf.intermediate_size, hf.hidden_act, context)
        width, act = hf.moe_intermediate_size, hf.hidden_act
        shared = GatedMLP(self.hidden, width * hf.n_shared_experts, act, context, partial=True)
        return moe_type(context)(self.routing(), self.hidden, width, act, context, shared)


@register("DeepseekV2ForCausalLM")
class DeepSeekV2(DeepSeek):
    def routing(self) -> Routing:
        hf = self.hf_config
        if hf.topk_method not in ("greedy", "group_limited_greedy"):
            raise ConfigError(
                f"topk_method {hf.topk_method!r} in the model config is not one of greedy, "
                "group_limited_greedy. Set it with --hf-overrides."
            )
        grouped = hf.topk_method == "group_limited_greedy"
        return Routing(
            num_experts=hf.n_routed_experts,
            top_k=hf.num_experts_per_tok,
            groups=hf.n_group if grouped else 1,
            top_groups=hf.topk_group if grouped else 1,
            scale=hf.routed_scaling_factor,
            wide=True,
        )


@register("DeepseekV3ForCausalLM")
class DeepSeekV3(DeepSeek):
    def routing(self) -> Routing:
        hf = self.hf_config
        return Routing(
            num_experts=hf.n_routed_experts,
            top_k=hf.num_experts_per_tok,
            score="sigmoid",
            renormalise=hf.norm_topk_prob,
            groups=hf.n_group,
            top_groups=hf.topk_group,
            correction=True,
            scale=hf.routed_scaling_factor,
            wide=True,
        )

    def ignored_weights(self) -> tuple[str, ...]:
        """Also the layers behind the last one: they predict further tokens for speculation."""
        hf = self.hf_config
        extra = range(hf.num_hidden_layers, hf.num_hidden_layers + hf.num_nextn_predict_layers)
        return (*super().ignored_weights(), *(rf"model\.layers\.{i}\..*" for i in extra))
