"""One attention layer: what it computes, who computes it, and its share of the KV cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vllm.device.attention import AttentionBackend, AttentionMetas, AttentionSpec
from vllm.messages.cache import MLA, AnySpec, FullAttention, SlidingWindow


class Attention(nn.Module):
    """Causal attention over this layer's paged cache. Has no weights.

    The worker owns the cache and gives it with `bind`; until then `forward` must not be called.
    """

    cache: Tensor

    def __init__(self, spec: AttentionSpec, backend: AttentionBackend, block_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.backend = backend
        self.block_size = block_size
        self.cache = torch.empty(0)
        self.group = -1

    def kv_spec(self) -> AnySpec:
        spec = self.spec
        dtype_bytes = spec.dtype.itemsize
        if spec.latent_dim:
            return MLA(self.block_size, spec.latent_dim, spec.rope_dim, dtype_bytes)
        value_dim = spec.value_dim or spec.head_dim
        shape = (self.block_size, spec.num_kv_heads, spec.head_dim, value_dim, dtype_bytes)
        if spec.window is not None:
            return SlidingWindow(*shape, spec.window)
        return FullAttention(*shape)

    def bind(self, cache: Tensor, group: int) -> None:
        """Attend over `cache` from now on, with the metadata of KV group `group`."""
        self.cache = cache
        self.group = group

    def forward(self, q: Tensor, k: Tensor, v: Tensor, metas: AttentionMetas) -> Tensor:
        """q [T, N * D] or [T, N, D], k and v likewise -> [T, N * Dv]. Writes k, v to the cache."""
        assert self.group >= 0, "no KV cache bound"
        spec = self.spec
        num_tokens = q.shape[0]
        out = self.backend.forward(
            q.view(num_tokens, spec.num_heads, -1),
            k.view(num_tokens, spec.num_kv_heads, -1),
            v.view(num_tokens, spec.num_kv_heads, -1),
            self.cache,
            metas[self.group],
            spec,
        )
        return out.reshape(num_tokens, -1)
