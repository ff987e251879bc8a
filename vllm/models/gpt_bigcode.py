"""GPT-BigCode (StarCoder, Granite 20B and 34B code): learned positions, one KV head."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from vllm.device.launch import TokenInputs
from vllm.errors import ConfigError
from vllm.layers.attention import SelfAttention
from vllm.layers.context import ModelContext
from vllm.layers.embedding import Positions
from vllm.layers.mlp import MLP
from vllm.layers.norm import LayerNorm
from vllm.layers.rope import NoRope
from vllm.layers.weights import Rule
from vllm.models.decoder import Decoder
from vllm.models.registry import register

THEIRS, OURS = "transformer.h.{layer}", "layers.{layer}"


@register("GPTBigCodeForCausalLM")
class GPTBigCode(Decoder):
    weights: ClassVar[tuple[Rule, ...]] = (
        Rule("transformer.wte.weight", "embed.weight"),
        Rule("transformer.wpe.weight", "positions.weight"),
        Rule("transformer.ln_f.{w}", "norm.{w}"),
        Rule("lm_head.{w}", "head.{w}"),
        Rule(f"{THEIRS}.ln_1.{{w}}", f"{OURS}.norm.{{w}}"),
        Rule(f"{THEIRS}.ln_2.{{w}}", f"{OURS}.mlp_norm.{{w}}"),
        Rule(f"{THEIRS}.attn.c_attn.{{w}}", f"{OURS}.attention.qkv.{{w}}", ("q", "k", "v")),
        Rule(f"{THEIRS}.attn.c_proj.{{w}}", f"{OURS}.attention.out.{{w}}"),
        Rule(f"{THEIRS}.mlp.c_fc.{{w}}", f"{OURS}.mlp.up.{{w}}"),
        Rule(f"{THEIRS}.mlp.c_proj.{{w}}", f"{OURS}.mlp.down.{{w}}"),
    )

    def __init__(self, context: ModelContext) -> None:
        if not context.hf_config.multi_query:
            raise ConfigError(
                "GPTBigCodeForCausalLM with multi_query=false interleaves q, k and v per head, "
                "which our implementation does not read. Use --model-impl transformers."
            )
        super().__init__(context)
        if self.stage.is_first:
            num_positions = self.hf_config.max_position_embeddings
            self.positions = Positions(num_positions, self.hidden, context)

    def attention(self, i: int) -> SelfAttention:
        scale = 0.0 if self.hf_config.scale_attn_weights else 1.0
        return self.self_attention(num_kv_heads=1, qkv_bias=True, out_bias=True, scale=scale)

    def mlp(self, i: int) -> nn.Module:
        hf = self.hf_config
        inner = hf.n_inner or 4 * self.hidden
        return MLP(self.hidden, inner, hf.activation_function, self.context, bias=True)

    def make_rope(self) -> NoRope:
        return NoRope()

    def make_norm(self) -> LayerNorm:
        return LayerNorm(self.hidden, self.hf_config.layer_norm_epsilon, self.context)

    def embed_inputs(self, inputs: TokenInputs) -> Tensor:
        return self.embed(inputs.token_ids) + self.positions(inputs.positions)
