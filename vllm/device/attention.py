"""Attention: what a layer asks for, what a launch brings, what a device does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vllm.device.capabilities import Capabilities
from vllm.device.launch import Launch
from vllm.messages.cache import KVCacheSpec
from vllm.messages.step import Int32Array

Upload = Callable[[np.ndarray], Tensor]  # Device.upload
# A NamedTuple of tensors and constants per kind of attention, such as PagedMeta: graph
# libraries flatten it, and no kind carries the fields of another.
AttentionMeta = Any
# One AttentionMeta per KV group, in the order of KVCacheLayout.groups.
AttentionMetas = Sequence[AttentionMeta]


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What one layer computes. N query heads share K key/value heads (N % K == 0).

    `softcap` c > 0 bounds scores to c * tanh(s / c). `latent_dim` > 0 makes the layer MLA: queries
    arrive absorbed, [T, N, latent_dim + rope_dim], and attend to one latent row per token.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    dtype: torch.dtype
    value_dim: int = 0  # 0: as head_dim
    window: int | None = None  # tokens visible to a query, itself included
    softcap: float = 0.0
    latent_dim: int = 0
    rope_dim: int = 0


class PagedMeta(NamedTuple):
    """Causal attention of R rows over a paged cache; full, sliding-window and MLA layers alike.

    Row r owns the tokens [query_start[r], query_start[r + 1]) of the launch; they are the last
    of its seq_lens[r] tokens. Token t is written to cache entry slot_mapping[t] = block * P +
    offset.
    """

    query_start: Tensor  # [R + 1] int32
    seq_lens: Tensor  # [R] int32, tokens of this launch included
    block_table: Tensor  # [R, *] int32
    slot_mapping: Tensor  # [T] int64
    max_query_len: int
    max_seq_len: int


class GroupTables(NamedTuple):
    """Block tables of one KV group, by slot; host arrays, to read only."""

    blocks_np: Int32Array  # [num_slots, *]
    block_size: int  # tokens
    window: int | None  # tokens visible to a query, itself included


class AttentionBackend(ABC):
    """One device's attention, shared by all layers of a model.

    Stateless apart from what its constructor resolved.
    """

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def rejects(cls, spec: AttentionSpec, caps: Capabilities) -> str | None:
        """None if this backend can serve `spec`, else the reason, for the log."""

    @abstractmethod
    def kv_shape(self, spec: KVCacheSpec, num_blocks: int) -> tuple[int, ...]:
        """Shape of one layer's cache tensor. Its size is num_blocks * spec.bytes_per_block()."""

    @abstractmethod
    def plan(self, launch: Launch, tables: GroupTables, upload: Upload) -> AttentionMeta:
        """Metadata of one launch for the KV group of `tables`: host work, once per launch.

        Tensors and constants of the model only: its values are compared to find a captured graph.
        """

    def expand(self, meta: AttentionMeta) -> AttentionMeta:
        """What `forward` takes: device work on a plan, once per launch, within a captured graph."""
        return meta

    @abstractmethod
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: Tensor,
        meta: AttentionMeta,
        spec: AttentionSpec,
    ) -> Tensor:
        """Write k, v into the cache, attend; q [T, N, D], k [T, K, D], v [T, K, Dv] -> [T, N, Dv].

        For MLA: q [T, N, latent + rope], k [T, 1, latent + rope], v unused -> [T, N, latent].
        """


class NoAttention(AttentionBackend):
    """Backend of a KV group whose layers are all on other ranks: plans and computes nothing."""

    name = "none"

    @classmethod
    def rejects(cls, spec: AttentionSpec, caps: Capabilities) -> str | None:
        return "it has no layers"

    def kv_shape(self, spec: KVCacheSpec, num_blocks: int) -> tuple[int, ...]:
        raise AssertionError(f"a group without layers has no cache of {spec}")

    def plan(self, launch: Launch, tables: GroupTables, upload: Upload) -> AttentionMeta:
        return ()

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: Tensor,
        meta: AttentionMeta,
        spec: AttentionSpec,
    ) -> Tensor:
        raise AssertionError("a group without layers attends to nothing")
