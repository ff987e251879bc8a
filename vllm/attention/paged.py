"""Attention backends over the paged cache of vllm.ops.cache, for devices that take any shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from vllm.device.attention import AttentionBackend, AttentionSpec, GroupTables, PagedMeta, Upload
from vllm.errors import NotAvailable
from vllm.messages.cache import MLA, CrossAttention, FullAttention, KVCacheSpec

if TYPE_CHECKING:
    from vllm.device.capabilities import Capabilities
    from vllm.device.launch import Launch

WriteKV = Callable[[Tensor, Tensor, Tensor, Tensor], None]
WriteLatent = Callable[[Tensor, Tensor, Tensor], None]
Attend = Callable[[Tensor, Tensor, PagedMeta, AttentionSpec], Tensor]


class PagedAttention(AttentionBackend):
    """Exact-shape launches, prefill and decode rows mixed; a subclass chooses the ops."""

    def __init__(self, ops: Mapping[str, Callable[..., Any]]) -> None:
        self.write_kv: WriteKV = ops["write_kv"]
        self.write_latent: WriteLatent = ops["write_latent"]
        self.paged_attention: Attend = ops["paged_attention"]
        self.mla_attention: Attend = ops["mla_attention"]

    @classmethod
    def rejects(cls, spec: AttentionSpec, caps: Capabilities) -> str | None:
        if spec.dtype not in caps.dtypes:
            return f"dtype {spec.dtype} is not one of {', '.join(map(str, caps.dtypes))}"
        if spec.num_heads % spec.num_kv_heads:
            return f"{spec.num_heads} query heads do not divide over {spec.num_kv_heads} KV heads"
        return None

    def kv_shape(self, spec: KVCacheSpec, num_blocks: int) -> tuple[int, ...]:
        if isinstance(spec, MLA):
            return num_blocks, spec.block_size, spec.latent_dim + spec.rope_dim
        if isinstance(spec, CrossAttention) or not isinstance(spec, FullAttention):
            raise NotAvailable(f"the {self.name} attention backend has no {type(spec).__name__}")
        width = spec.block_size * (spec.head_dim + spec.value_dim)
        return num_blocks, spec.num_kv_heads, width

    def plan(self, launch: Launch, tables: GroupTables, upload: Upload) -> PagedMeta:
        block_size, table = tables.block_size, tables.blocks_np
        positions, counts = launch.positions_np, launch.counts_np
        seq_lens = launch.starts_np + counts
        max_seq_len = int(seq_lens.max())
        # Only the columns in use are gathered: tables are as wide as the longest possible request.
        block_table = table[launch.slots_np, : -(-max_seq_len // block_size)]
        column, offset = np.divmod(positions, np.int32(block_size))
        slot_mapping = block_table[launch.token_rows_np, column] * np.int64(block_size) + offset
        return PagedMeta(
            query_start=upload(launch.query_start_np),
            seq_lens=upload(seq_lens),
            block_table=upload(block_table),
            slot_mapping=upload(slot_mapping),
            max_query_len=int(counts.max()),
            max_seq_len=max_seq_len,
        )

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, cache: Tensor, meta: PagedMeta, spec: AttentionSpec
    ) -> Tensor:
        if spec.latent_dim > 0:
            self.write_latent(k.flatten(1), cache, meta.slot_mapping)
            return self.mla_attention(q, cache, meta, spec)
        self.write_kv(k, v, cache, meta.slot_mapping)
        return self.paged_attention(q, cache, meta, spec)
