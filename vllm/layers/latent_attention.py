"""Self-attention block over latent rows, as DeepSeek-V2 introduced it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vllm.device.attention import AttentionMetas, AttentionSpec
from vllm.layers.attention import HEADS
from vllm.layers.context import ModelContext
from vllm.layers.latent_cache import LatentAttention, LatentShape
from vllm.layers.linear import Linear
from vllm.layers.norm import RMSNorm
from vllm.layers.plain import GivenToOwner
from vllm.layers.rope.table import Rope, Rotary
from vllm.layers.shapes import LinearShape, Part, Shard, unfused

NORM_EPS = 1e-6  # of the norms within attention, whatever rms_norm_eps says


class LatentSelfAttention(nn.Module):
    """x [T, H] -> [T, H] over a cache of latent rows."""

    def __init__(self, hf: Any, rotary: Rotary, scale: float, context: ModelContext) -> None:
        super().__init__()
        hidden, heads = hf.hidden_size, hf.num_attention_heads
        shape = LatentShape(
            hf.kv_lora_rank, hf.qk_nope_head_dim, hf.qk_rope_head_dim, hf.v_head_dim
        )
        head_dim, row = shape.nope + shape.rope, shape.latent + shape.rope
        self.q_widths, self.kv_widths = (shape.nope, shape.rope), (shape.latent, shape.rope)
        self.head_dim = head_dim
        q = Part("q", heads * head_dim, head_dim, HEADS)
        if hf.q_lora_rank is not None:
            self.q_norm: nn.Module = RMSNorm(hf.q_lora_rank, NORM_EPS, context)
            expand = LinearShape(hf.q_lora_rank, (Part("", q.out, q.unit, HEADS),), Shard.COLUMN)
            self.q_expand: nn.Module = Linear(expand, context)
            q = Part("q", hf.q_lora_rank, hf.q_lora_rank, repeats=True)
        else:
            self.q_norm, self.q_expand = nn.Identity(), nn.Identity()
        # A part that is one unit is held by every rank.
        inputs = LinearShape(
            hidden, (q, Part("kv", row, row, repeats=True)), Shard.COLUMN, hf.attention_bias
        )
        self.inputs = Linear(inputs, context)
        self.latent_norm = RMSNorm(shape.latent, NORM_EPS, context)
        expanded = shape.nope + shape.value
        kv = LinearShape(shape.latent, (Part("", heads * expanded, expanded, HEADS),), Shard.COLUMN)
        self.kv_expand = Linear(kv, context)
        self.out = Linear(
            unfused(heads * shape.value, hidden, Shard.ROW, hf.attention_bias), context
        )
        spec = AttentionSpec(
            num_heads=context.shard.span(heads, what=HEADS)[1],
            num_kv_heads=1,
            head_dim=row,
            value_dim=shape.latent,
            scale=scale,
            dtype=context.cache_dtype,
            latent_dim=shape.latent,
            rope_dim=shape.rope,
        )
        self.attend = LatentAttention(shape, context.attention(spec))
        self.kv_expand.own_method = GivenToOwner(self.attend.absorb)
        self.rotate = rotary.apply

    def forward(self, x: Tensor, rope: Rope, metas: AttentionMetas) -> Tensor:
        q, kv = self.inputs(x).split(self.inputs.widths, dim=-1)
        q = self.q_expand(self.q_norm(q)).unflatten(-1, (-1, self.head_dim))  # [T, N, D]
        q, q_rope = q.split(self.q_widths, dim=-1)
        latent, k_rope = kv.split(self.kv_widths, dim=-1)
        q_rope, k_rope = self.rotate(q_rope, k_rope.unsqueeze(1), rope)
        return self.out(self.attend(q, q_rope, self.latent_norm(latent), k_rope, metas))
