"""The cache of a layer: entries of keys and values, written one by one and read in whole blocks.

See HpuAttention for the layout.
"""

from __future__ import annotations

from torch import Tensor

from vllm.device.attention import AttentionSpec
from vllm.platforms.hpu.attention.metadata import DecodeTables, PromptTables


def write(cache: Tensor, k: Tensor, v: Tensor, slots: Tensor, spec: AttentionSpec) -> None:
    """Store k and v [T, K, D] at entries slots [T]."""
    if spec.latent_dim:
        cache.index_copy_(0, slots, k.flatten(1).to(cache.dtype))
        return
    cache.index_copy_(0, slots, k.to(cache.dtype))
    cache.index_copy_(0, slots + cache.shape[0] // 2, v.to(cache.dtype))


def read_listed(cache: Tensor, tables: DecodeTables, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """Keys [n, P, K, D] and values [n, P, K, Dv] of the blocks of a decode launch."""
    listed = tables.block_list

    def read(blocks: Tensor) -> Tensor:
        if tables.contiguous:
            return blocks.narrow(0, 0, listed.shape[0])
        return blocks.index_select(0, listed)

    block_size = tables.bias.shape[-1]
    if spec.latent_dim:
        rows = read(cache.view(-1, block_size, cache.shape[1])).unsqueeze(2)  # [n, P, 1, width]
        return rows, rows[..., : spec.latent_dim]
    keys, values = cache.view(2, -1, block_size, *cache.shape[1:]).unbind(0)
    return read(keys), read(values)


def read_context(cache: Tensor, tables: PromptTables, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """Keys and values [R, C * P, K, D] of the context of a prefill launch.

    For MLA, the whole latent row is also the value.
    """
    num_rows, num_blocks = tables.context_blocks.shape
    flat = tables.context_blocks.flatten()

    def read(blocks: Tensor) -> Tensor:
        found = blocks.index_select(0, flat)  # [R * C, P, ...]
        return found.view(num_rows, num_blocks * tables.block_size, spec.num_kv_heads, -1)

    if spec.latent_dim:
        rows = read(cache.view(-1, tables.block_size, cache.shape[1]))
        return rows, rows
    keys, values = cache.view(2, -1, tables.block_size, *cache.shape[1:]).unbind(0)
    return read(keys), read(values)
