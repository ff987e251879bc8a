"""Mixture of experts of fixed shape: which experts are chosen changes no size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from vllm.envs import Environment
from vllm.errors import ConfigError
from vllm.ops.moe import GATED_ACTIVATIONS
from vllm.platforms.hpu.ops.activation import gelu_and_mul

# Names of our activations in the kernel, which computes gelu by its tanh approximation only.
_ACTIVATIONS: Final = {"silu": "silu", "gelu_tanh": "gelu"}
_DENSE_EXPERTS: Final = 32  # per product over all tokens: bounds the results held at once
_DENSE_TOKENS: Final = 512


@dataclass(frozen=True, slots=True)
class MoESettings:
    chunks: tuple[int, ...] = ()  # of the kernel, one per boundary
    boundaries: tuple[int, ...] = ()  # ascending; tokens that a chunk is for at most
    experts_per_call: int | None = None  # None: all

    def chunk(self, num_tokens: int) -> int | None:
        """None: the kernel's own choice."""
        for chunk, boundary in zip(self.chunks, self.boundaries, strict=True):
            if num_tokens <= boundary:
                return chunk
        return self.chunks[-1] if self.chunks else None


def moe_settings(env: Environment | None = None) -> MoESettings:
    """Raises ConfigError for lists that do not belong together."""
    env = env or Environment()
    chunks, boundaries = env.VLLM_MOE_CHUNK, env.VLLM_MOE_TOKEN_BOUNDARY
    if len(chunks) != len(boundaries) or list(boundaries) != sorted(boundaries):
        raise ConfigError(
            f"VLLM_MOE_CHUNK={','.join(map(str, chunks))} and VLLM_MOE_TOKEN_BOUNDARY="
            f"{','.join(map(str, boundaries))}: give as many chunk sizes as boundaries, and the "
            "boundaries in ascending order."
        )
    per_call = env.MAX_EXPERTS_PER_SLICE
    return MoESettings(chunks, boundaries, None if per_call == -1 else per_call)


@dataclass(frozen=True, slots=True)
class FusedMoE:
    """Habana's kernel. Activations it does not have are computed densely."""

    kernel: Callable[..., Tensor]
    settings: MoESettings = field(default_factory=MoESettings)
    end_graph: Callable[[], Any] = lambda: None

    def __call__(
        self, x: Tensor, w13: Tensor, w2: Tensor, topk_ids: Tensor, topk_weights: Tensor, act: str
    ) -> Tensor:
        """As the reference of ops.moe."""
        if act not in _ACTIVATIONS:
            return dense_moe(x, w13, w2, topk_ids, topk_weights, act)
        num_experts = w13.shape[0]
        per_call = self.settings.experts_per_call or num_experts
        # Views: the experts' weights exist once.
        up, down = w13.unbind(0), w2.unbind(0)
        options: dict[str, Any] = {}
        chunk = self.settings.chunk(x.shape[0])
        if chunk is not None:  # older releases do not know these names
            options = {"chunk_size": chunk, "total_experts": num_experts}
        # Other dtypes do not compile.
        ids, weights = topk_ids.long(), topk_weights.to(x.dtype)
        # The kernel leaves out what is above its experts; of negative ids nothing is documented.
        ids = ids.masked_fill(ids < 0, num_experts)
        out: Tensor | None = None
        for first in range(0, num_experts, per_call):
            last = min(first + per_call, num_experts)
            part = self.kernel(
                hidden_states=x,
                expert_routing_table=ids,
                router_weights=weights,
                w12=list(up[first:last]),
                w3=list(down[first:last]),
                permuted_weights=True,
                activation=_ACTIVATIONS[act],
                experts_min=first,
                experts_max=last - 1,
                **options,
            )
            out = part if out is None else out + part
            if per_call < num_experts:
                self.end_graph()
        assert out is not None, "a layer without experts"
        return out


def dense_moe(
    x: Tensor, w13: Tensor, w2: Tensor, topk_ids: Tensor, topk_weights: Tensor, act: str
) -> Tensor:
    """As the reference of ops.moe, reading the chosen experts' weights or all, whatever is less."""
    num_tokens, top_k = topk_ids.shape
    chosen = _chosen_experts if num_tokens * top_k <= w13.shape[0] else _all_experts
    gated = gelu_and_mul if act == "gelu" else GATED_ACTIVATIONS[act]
    pieces = [
        chosen(*piece, w13, w2, gated)
        for piece in zip(
            x.split(_DENSE_TOKENS),
            topk_ids.long().split(_DENSE_TOKENS),
            topk_weights.float().split(_DENSE_TOKENS),
            strict=True,
        )
    ]
    return torch.cat(pieces).to(x.dtype)


def _chosen_experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w13: Tensor,
    w2: Tensor,
    gated: Callable[[Tensor], Tensor],
) -> Tensor:
    """For few tokens: [T, H] float32."""
    num_tokens, top_k = ids.shape
    flat = ids.flatten().clamp(min=0)
    tokens = x.unsqueeze(1).expand(-1, top_k, -1).reshape(flat.shape[0], -1, 1)  # [T * k, H, 1]
    hidden = gated((w13.index_select(0, flat) @ tokens).squeeze(-1))
    out = (w2.index_select(0, flat) @ hidden.unsqueeze(-1)).view(num_tokens, top_k, -1)
    weighted = out.float() * weights.unsqueeze(-1)
    return weighted.masked_fill((ids < 0).unsqueeze(-1), 0.0).sum(1)


def _all_experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w13: Tensor,
    w2: Tensor,
    gated: Callable[[Tensor], Tensor],
) -> Tensor:
    """For many tokens, most experts are chosen by one of them: [T, H] float32."""
    shares = weights.new_zeros(x.shape[0], 1 + w13.shape[0])  # the first of what is not here
    shares = shares.scatter_add_(1, ids + 1, weights)[:, 1:]  # [T, E]
    out = weights.new_zeros(x.shape)
    experts = zip(
        w13.split(_DENSE_EXPERTS),
        w2.split(_DENSE_EXPERTS),
        shares.split(_DENSE_EXPERTS, 1),
        strict=True,
    )
    for some_w13, some_w2, share in experts:
        repeated = x.expand(some_w13.shape[0], -1, -1)
        hidden = gated(torch.bmm(repeated, some_w13.mT))  # [e, T, I]
        outputs = torch.bmm(hidden, some_w2.mT).float()  # [e, T, H]
        out = out + (outputs * share.t().unsqueeze(-1)).sum(0)
    return out
