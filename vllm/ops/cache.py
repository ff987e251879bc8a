"""The paged KV cache: its layout, and writing to it.

Keys and values (`full`, `sliding`): [B, K, P * (D + Dv)]. Per block and KV head, the keys come
first and are stored transposed, [D, P], then the values, [P, Dv]. Transposed keys make the scores
of one query against a block P independent sums, which vectorise without a horizontal reduction;
one block and head is one contiguous piece, read once for all query heads that share it.

Latent rows (MLA): [B, P, latent + rope], one row per token. All heads share them, so that a kernel
can transpose a block once per step.

Blocks are the outermost dimension so that KV groups can share one piece of memory.
"""

from __future__ import annotations

from torch import Tensor

from vllm.ops.registry import op


def split_kv(cache: Tensor, head_dim: int, value_dim: int) -> tuple[Tensor, Tensor]:
    """Views of a [B, K, P * (D + Dv)] cache: keys [B, K, D, P] and values [B, K, P, Dv]."""
    num_blocks, num_kv_heads, width = cache.shape
    block_size = width // (head_dim + value_dim)
    keys = cache[..., : head_dim * block_size].view(num_blocks, num_kv_heads, head_dim, block_size)
    values = cache[..., head_dim * block_size :].view(
        num_blocks, num_kv_heads, block_size, value_dim
    )
    return keys, values


@op
def write_kv(k: Tensor, v: Tensor, cache: Tensor, slot_mapping: Tensor) -> None:
    """Store k [T, K, D] and v [T, K, Dv] at cache entries slot_mapping [T] int64, in place.

    Entry s is offset s % P of block s // P. Entries may repeat only where any of the values will do
    (the dummy block).
    """
    keys, values = split_kv(cache, k.shape[-1], v.shape[-1])
    block_size = values.shape[2]
    block, offset = slot_mapping // block_size, slot_mapping % block_size
    keys[block, :, :, offset] = k.to(cache.dtype)
    values[block, :, offset] = v.to(cache.dtype)


@op
def write_latent(latent: Tensor, cache: Tensor, slot_mapping: Tensor) -> None:
    """Store latent [T, latent + rope] rows in a [B, P, latent + rope] cache, in place."""
    block_size = cache.shape[1]
    cache[slot_mapping // block_size, slot_mapping % block_size] = latent.to(cache.dtype)
