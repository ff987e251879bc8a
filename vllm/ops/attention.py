"""Attention over the paged cache. Layouts are described in vllm.ops.cache."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.device.attention import AttentionSpec, PagedMeta
from vllm.ops.cache import split_kv
from vllm.ops.registry import op


def _weights(scores: Tensor, num_queries: int, spec: AttentionSpec) -> Tensor:
    """Softmax of scores [..., Q, S] where the Q queries are the last ones of the S tokens."""
    num_tokens = scores.shape[-1]
    if spec.softcap > 0:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    query = torch.arange(num_tokens - num_queries, num_tokens, device=scores.device)[:, None]
    key = torch.arange(num_tokens, device=scores.device)[None, :]
    hidden = key > query
    if spec.window is not None:
        hidden |= key <= query - spec.window
    return torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)


@op
def paged_attention(q: Tensor, cache: Tensor, meta: PagedMeta, spec: AttentionSpec) -> Tensor:
    """Causal attention of q [T, N, D] over the cache, which already holds the launch's own tokens.

    -> [T, N, Dv] in q's dtype; scores and sums are float32. Table entries behind a row's window are
    not read for its result, but must be valid block ids.
    """
    value_dim = spec.value_dim or spec.head_dim
    keys, values = split_kv(cache, spec.head_dim, value_dim)
    num_kv_heads, block_size = values.shape[1], values.shape[2]
    out = q.new_zeros(q.shape[0], q.shape[1], value_dim)
    starts = meta.query_start.tolist()
    for row, length in enumerate(meta.seq_lens.tolist()):
        begin, end = starts[row], starts[row + 1]
        if begin == end:
            continue
        blocks = meta.block_table[row, : -(-length // block_size)].long()
        k = keys[blocks].permute(1, 2, 0, 3).flatten(2)[..., :length].float()  # [K, D, S]
        v = values[blocks].transpose(0, 1).flatten(1, 2)[:, :length].float()  # [K, S, Dv]
        grouped = q[begin:end].float().view(end - begin, num_kv_heads, -1, spec.head_dim)
        scores = torch.einsum("qkgd,kds->kgqs", grouped, k) * spec.scale
        weights = _weights(scores, end - begin, spec)
        out[begin:end] = torch.einsum("kgqs,ksd->qkgd", weights, v).flatten(1, 2).to(q.dtype)
    return out


@op
def mla_attention(q: Tensor, cache: Tensor, meta: PagedMeta, spec: AttentionSpec) -> Tensor:
    """Attention of absorbed queries q [T, N, latent + rope] over latent rows -> [T, N, latent].

    A row is the key of every head; its first `latent_dim` elements are also the value.
    """
    block_size = cache.shape[1]
    out = q.new_zeros(q.shape[0], q.shape[1], spec.latent_dim)
    starts = meta.query_start.tolist()
    for row, length in enumerate(meta.seq_lens.tolist()):
        begin, end = starts[row], starts[row + 1]
        if begin == end:
            continue
        blocks = meta.block_table[row, : -(-length // block_size)].long()
        latent = cache[blocks].flatten(0, 1)[:length].float()  # [S, latent + rope]
        scores = torch.einsum("qnd,sd->nqs", q[begin:end].float(), latent) * spec.scale
        weights = _weights(scores, end - begin, spec)
        mixed = torch.einsum("nqs,sd->qnd", weights, latent[:, : spec.latent_dim])
        out[begin:end] = mixed.to(q.dtype)
    return out
