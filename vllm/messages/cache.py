"""What a layer needs of the KV cache, and how layers share one pool of blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec


class BlockNeeds(msgspec.Struct, frozen=True):
    """How a layer uses blocks. Layers with equal needs can share block tables.

    Widths are no part of it: one block id may mean few bytes in one layer and many in another.
    """

    block_size: int  # tokens per block
    window: int | None = None  # tokens a query can look back on, itself included; None: all
    is_latent: bool = False  # MLA: one row per token instead of keys and values
    max_encoder_tokens: int = 0  # > 0: blocks hold so many tokens of an encoder, not the request's

    def max_blocks(self, num_tokens: int) -> int:
        """Most entries in the block table of a request of `num_tokens` tokens."""
        return -(-(self.max_encoder_tokens or num_tokens) // self.block_size)


class KVCacheSpec(msgspec.Struct, frozen=True, tag=True):
    """Cache demand of one attention layer."""

    block_size: int  # tokens per block

    @property
    def needs(self) -> BlockNeeds:
        return BlockNeeds(self.block_size)

    @property
    def parts(self) -> tuple[int, ...]:
        """Bytes per block of each part; a device may store a part of all blocks together."""
        raise NotImplementedError

    def bytes_per_block(self) -> int:
        """Bytes one block takes in this layer."""
        return sum(self.parts)


class FullAttention(KVCacheSpec, frozen=True):
    num_kv_heads: int
    head_dim: int
    value_dim: int
    dtype_bytes: int

    @property
    def parts(self) -> tuple[int, ...]:
        """Keys, values."""
        head_bytes = self.block_size * self.num_kv_heads * self.dtype_bytes
        return head_bytes * self.head_dim, head_bytes * self.value_dim


class SlidingWindow(FullAttention, frozen=True):
    window_tokens: int

    @property
    def needs(self) -> BlockNeeds:
        return BlockNeeds(self.block_size, window=self.window_tokens)


class CrossAttention(FullAttention, frozen=True):
    """Keys and values of encoder outputs: written once, never extended by decoding."""

    max_encoder_tokens: int

    @property
    def needs(self) -> BlockNeeds:
        return BlockNeeds(self.block_size, max_encoder_tokens=self.max_encoder_tokens)


class MLA(KVCacheSpec, frozen=True):
    """Multi-head latent attention: one compressed row per token, shared by all heads."""

    latent_dim: int  # compressed KV
    rope_dim: int  # the rotary part of the key, stored behind it
    dtype_bytes: int

    @property
    def needs(self) -> BlockNeeds:
        return BlockNeeds(self.block_size, is_latent=True)

    @property
    def parts(self) -> tuple[int, ...]:
        return (self.block_size * (self.latent_dim + self.rope_dim) * self.dtype_bytes,)


AnySpec = FullAttention | SlidingWindow | CrossAttention | MLA


class KVGroup(msgspec.Struct, frozen=True):
    """Layers that share block tables: a block id means the same tokens in each of them."""

    needs: BlockNeeds  # of every layer
    layers: dict[str, AnySpec]  # in layer order; empty if all of them are on other ranks


def groups_by_needs(specs: Mapping[str, AnySpec]) -> tuple[KVGroup, ...]:
    """One group for all layers of the same needs."""
    layers: dict[BlockNeeds, dict[str, AnySpec]] = {}
    for name, spec in specs.items():
        layers.setdefault(spec.needs, {})[name] = spec
    return tuple(KVGroup(needs, some) for needs, some in layers.items())


class CacheTensor(NamedTuple):
    """Memory that layers of different groups share; all of them need as much for a block."""

    bytes_per_block: int
    users: list[tuple[int, str]]  # KV group, layer


class KVCacheLayout(msgspec.Struct, frozen=True):
    """Measured at start-up, never configured: how much cache there is and who uses which tensor.

    There are `num_blocks` blocks, numbered alike in all `tensors`. A block belongs to one group at
    a time, so groups share memory instead of splitting it. Block 0 is the dummy slot's and is
    never handed out. A model without a cache has no groups and no blocks.
    """

    num_blocks: int
    groups: tuple[KVGroup, ...]

    @property
    def tensors(self) -> list[CacheTensor]:
        """Layer i of those of a group that have equal `parts` uses tensor i for such parts.

        Parts must be equal, not only their sum: a device that stores all keys before all values
        has a block at other addresses than one that stores latent rows.
        """
        found: dict[tuple[tuple[int, ...], int], CacheTensor] = {}
        for idx, group in enumerate(self.groups):
            num_users: Counter[tuple[int, ...]] = Counter()
            for name, spec in group.layers.items():
                place = spec.parts, num_users[spec.parts]
                num_users[spec.parts] += 1
                tensor = found.setdefault(place, CacheTensor(spec.bytes_per_block(), []))
                tensor.users.append((idx, name))
        return list(found.values())

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block id over all tensors."""
        return sum(tensor.bytes_per_block for tensor in self.tensors)

    def of(self, names: Collection[str]) -> KVCacheLayout:
        """The layout on a rank that has these layers. Groups keep their numbers."""
        groups = (
            KVGroup(group.needs, {name: s for name, s in group.layers.items() if name in names})
            for group in self.groups
        )
        return KVCacheLayout(self.num_blocks, tuple(groups))
