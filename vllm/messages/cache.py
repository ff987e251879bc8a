"""What a layer needs of the KV cache, and how layers share one pool of blocks."""

from __future__ import annotations

import msgspec


class KVCacheSpec(msgspec.Struct, frozen=True, tag=True):
    """Cache demand of one attention layer. Layers with equal specs can share a KV group."""

    block_size: int  # tokens per block

    def bytes_per_block(self) -> int:
        """Bytes one block takes in this layer."""
        raise NotImplementedError

    @property
    def window(self) -> int | None:
        """Tokens a query can look back on, itself included; None: all of them."""
        return None


class FullAttention(KVCacheSpec, frozen=True):
    num_kv_heads: int
    head_dim: int
    value_dim: int
    dtype_bytes: int

    def bytes_per_block(self) -> int:
        return (
            self.block_size
            * self.num_kv_heads
            * (self.head_dim + self.value_dim)
            * self.dtype_bytes
        )


class SlidingWindow(FullAttention, frozen=True):
    window_tokens: int

    @property
    def window(self) -> int | None:
        return self.window_tokens


class CrossAttention(FullAttention, frozen=True):
    """Keys and values of encoder outputs: written once, never extended by decoding."""

    max_encoder_tokens: int


class MLA(KVCacheSpec, frozen=True):
    """Multi-head latent attention: one compressed row per token, shared by all heads."""

    latent_dim: int  # compressed KV
    rope_dim: int  # the rotary part of the key, stored behind it
    dtype_bytes: int

    def bytes_per_block(self) -> int:
        return self.block_size * (self.latent_dim + self.rope_dim) * self.dtype_bytes


AnySpec = FullAttention | SlidingWindow | CrossAttention | MLA


class KVGroup(msgspec.Struct, frozen=True):
    """Layers that share block tables: a block id means the same tokens in each of them."""

    spec: AnySpec
    layers: tuple[str, ...]


class KVCacheLayout(msgspec.Struct, frozen=True):
    """Measured at start-up, never configured: how much cache there is and who uses which tensor.

    There are `num_tensors` cache tensors of `num_blocks` blocks. Layer i of every group uses tensor
    i: a block belongs to one group at a time, so groups share the memory instead of splitting it.
    Block 0 is the dummy slot's and is never handed out.
    """

    num_blocks: int
    groups: tuple[KVGroup, ...]

    @property
    def num_tensors(self) -> int:
        return max((len(group.layers) for group in self.groups), default=0)

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block id over all tensors."""
        return sum(
            max(g.spec.bytes_per_block() for g in self.groups if i < len(g.layers))
            for i in range(self.num_tensors)
        )
