"""Padded launches over random caches, and what attention must give for their real tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.attention.paged_cases import Row, dense_attention
from vllm.device.attention import AttentionSpec, GroupTables
from vllm.device.launch import Launch, Phase, ShapeKey
from vllm.messages.cache import MLA, FullAttention, KVCacheSpec
from vllm.platforms.hpu.attention import HpuAttention

MAX_BLOCKS = 24  # columns of a block table


class HostMemory:
    """A device that is the host."""

    def upload(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.copy())


@dataclass(frozen=True, slots=True)
class Padding:
    """What a bucket adds to the demand of a launch."""

    rows: int = 0
    tokens: int = 0  # per row
    blocks: int = 0


def block_table(rows: Sequence[Row], block_size: int, first_block: int = 1) -> np.ndarray:
    """Blocks of rows in slots 1, 2, ...; every row has its own, in random order."""
    generator = np.random.default_rng(len(rows))
    needs = [-(-row.length // block_size) for row in rows]
    ids = first_block + generator.permutation(sum(needs)).astype(np.int32)
    table = np.zeros((len(rows) + 1, MAX_BLOCKS), np.int32)
    ends = np.cumsum(needs, dtype=np.int64)
    for slot, (need, end) in enumerate(zip(needs, ends, strict=True), 1):
        table[slot, :need] = ids[end - need : end]
    return table


def padded_launch(
    rows: Sequence[Row], block_size: int, phase: Phase, padding: Padding = Padding()
) -> Launch:
    """Row i is slot i + 1."""
    num_real, num_rows = len(rows), len(rows) + padding.rows
    counts, starts, slots = np.zeros((3, num_rows), np.int32)
    counts[:num_real] = [row.count for row in rows]
    starts[:num_real] = [row.length - row.count for row in rows]
    slots[:num_real] = np.arange(1, num_real + 1)
    query_len = int(counts.max(initial=1))
    if phase is Phase.DECODE:
        blocks = int((-(-(starts + 1) // block_size))[:num_real].sum())
    else:
        query_len += padding.tokens
        blocks = int((-(-starts // block_size)).max(initial=0))
    offset = np.arange(query_len, dtype=np.int32)
    positions = np.where(offset < counts[:, None], starts[:, None] + offset, 0)
    return Launch(
        key=ShapeKey(phase, num_rows, query_len, blocks + padding.blocks),
        plan_rows_np=np.arange(num_real, dtype=np.int32),
        slots_np=slots,
        starts_np=starts,
        counts_np=counts,
        query_start_np=np.arange(num_rows + 1, dtype=np.int32) * query_len,
        positions_np=positions.astype(np.int32).reshape(-1),
        token_rows_np=np.repeat(np.arange(num_rows, dtype=np.int32), query_len),
    )


@dataclass(frozen=True, slots=True)
class Case:
    """One launch with its cache filled, and the result of its real tokens in float64."""

    launch: Launch
    tables: GroupTables
    cache: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    real: Tensor  # [T] bool
    expected: Tensor

    def plan(self, backend: HpuAttention) -> Any:
        return backend.plan(self.launch, self.tables, HostMemory().upload)

    def run(self, backend: HpuAttention, spec: AttentionSpec) -> Tensor:
        """Results of the real tokens."""
        meta = self.plan(backend)
        out = backend.forward(self.q, self.k, self.v, self.cache, backend.expand(meta), spec)
        assert out.dtype == spec.dtype
        return out[self.real]


def kv_spec(spec: AttentionSpec, block_size: int) -> KVCacheSpec:
    if spec.latent_dim:
        return MLA(block_size, spec.latent_dim, spec.rope_dim, spec.dtype.itemsize)
    heads = (spec.num_kv_heads, spec.head_dim, spec.value_dim or spec.head_dim)
    return FullAttention(block_size, *heads, spec.dtype.itemsize)


def make_case(
    backend: HpuAttention,
    spec: AttentionSpec,
    rows: Sequence[Row],
    phase: Phase,
    block_size: int = 16,
    padding: Padding = Padding(),
) -> Case:
    generator = torch.Generator().manual_seed(len(rows) + spec.head_dim + block_size)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(spec.dtype)

    table = block_table(rows, block_size)
    launch = padded_launch(rows, block_size, phase, padding)
    num_blocks = int(table.max()) + 2 + padding.blocks
    cache = rand(*backend.kv_shape(kv_spec(spec, block_size), num_blocks))
    num_tokens = launch.num_tokens
    q = rand(num_tokens, spec.num_heads, spec.head_dim)
    k = rand(num_tokens, spec.num_kv_heads, spec.head_dim)
    v = k if spec.latent_dim else rand(num_tokens, spec.num_kv_heads, spec.head_dim)
    expected = []
    for r, row in enumerate(rows):
        begin = int(launch.query_start_np[r])
        own = slice(begin, begin + row.count)
        position = np.arange(row.length - row.count)
        entries = table[r + 1, position // block_size].astype(np.int64) * block_size
        past_k, past_v = _entries(cache, torch.from_numpy(entries + position % block_size), spec)
        keys, values = torch.cat((past_k, k[own])), torch.cat((past_v, v[own]))
        if spec.latent_dim:
            values = values[..., : spec.latent_dim]
        expected.append(dense_attention(q[own], keys, values, spec))
    counts, query_len = torch.from_numpy(launch.counts_np), launch.key.query_len
    real = (torch.arange(query_len) < counts.unsqueeze(1)).flatten()
    tables = GroupTables(table, block_size, spec.window)
    return Case(launch, tables, cache, q, k, v, real, torch.cat(expected or [q[:0]]).to(spec.dtype))


def _entries(cache: Tensor, entries: Tensor, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    if spec.latent_dim:
        rows = cache[entries].unsqueeze(1)
        return rows, rows
    return cache[entries], cache[entries + cache.shape[0] // 2]
