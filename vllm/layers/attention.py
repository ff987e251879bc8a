"""Self-attention block of a decoder layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from vllm.device.attention import AttentionMetas, AttentionSpec
from vllm.layers.context import ModelContext
from vllm.layers.linear import Linear
from vllm.layers.norm import RMSNorm
from vllm.layers.rope.table import NoRope, Rope, Rotary
from vllm.layers.shapes import LinearShape, Part, Shard, unfused

HEADS: Final = "attention heads"  # in errors
KV_HEADS: Final = "key-value heads"


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """A block over the whole tensor-parallel group. `qk_norm_eps` > 0: q and k are normalised."""

    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float = 0.0  # 0: 1 / sqrt(head_dim)
    qkv_bias: bool = False
    out_bias: bool = False
    window: int | None = None
    softcap: float = 0.0
    qk_norm_eps: float = 0.0

    def spec(self, context: ModelContext) -> AttentionSpec:
        """What one rank's kernel computes."""
        shard = context.shard
        return AttentionSpec(
            num_heads=shard.span(self.num_heads, what=HEADS)[1],
            num_kv_heads=shard.span(self.num_kv_heads, what=KV_HEADS, repeats=True)[1],
            head_dim=self.head_dim,
            scale=self.scale or self.head_dim**-0.5,
            dtype=context.cache_dtype,
            window=self.window,
            softcap=self.softcap,
        )


class SelfAttention(nn.Module):
    """x [T, H] -> [T, H]: project, rotate, attend, project back."""

    def __init__(
        self, shape: AttentionShape, rotary: Rotary | NoRope, context: ModelContext
    ) -> None:
        super().__init__()
        unit = shape.head_dim
        widths = (shape.num_heads * unit, shape.num_kv_heads * unit)
        kv = (Part(name, widths[1], unit, KV_HEADS, repeats=True) for name in "kv")
        parts = (Part("q", widths[0], unit, HEADS), *kv)
        self.qkv = Linear(LinearShape(shape.hidden, parts, Shard.COLUMN, shape.qkv_bias), context)
        self.out = Linear(unfused(widths[0], shape.hidden, Shard.ROW, shape.out_bias), context)
        self.attend = context.attention(shape.spec(context))
        self.head_dim = shape.head_dim
        self.rotate = rotary.apply
        self.norm_and_rotate = rotary.apply_normed
        self.has_norms = shape.qk_norm_eps > 0
        if self.has_norms:
            self.q_norm = RMSNorm(unit, shape.qk_norm_eps, context)
            self.k_norm = RMSNorm(unit, shape.qk_norm_eps, context)

    def forward(self, x: Tensor, rope: Rope, metas: AttentionMetas) -> Tensor:
        q, k, v = self.qkv(x).split(self.qkv.widths, dim=-1)
        q = q.unflatten(-1, (-1, self.head_dim))  # [T, N, D]
        k = k.unflatten(-1, (-1, self.head_dim))  # [T, K, D]
        if self.has_norms:
            q, k = self.norm_and_rotate(q, k, (self.q_norm, self.k_norm), rope)
        else:
            q, k = self.rotate(q, k, rope)
        return self.out(self.attend(q, k, v, metas))
