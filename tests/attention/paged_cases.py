"""Random paged batches, and what attention over them must give, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm.device.attention import AttentionSpec, PagedMeta


@dataclass(frozen=True, slots=True)
class Row:
    """A row of `count` query tokens that end a sequence of `length`."""

    length: int
    count: int


MIXED_ROWS = (Row(1, 1), Row(37, 1), Row(16, 16), Row(33, 7), Row(64, 1), Row(19, 19), Row(5, 0))


def random_meta(rows: Sequence[Row], block_size: int, generator: torch.Generator) -> PagedMeta:
    """Every row in blocks of its own, in random order; block 0 only pads the tables."""
    needs = [-(-row.length // block_size) for row in rows]
    ids = 1 + torch.randperm(sum(needs), generator=generator).int()
    table = torch.zeros(len(rows), max(needs, default=0) + 1, dtype=torch.int32)
    slots: list[int] = []
    used = 0
    for r, (row, need) in enumerate(zip(rows, needs, strict=True)):
        table[r, :need] = ids[used : used + need]
        used += need
        for position in range(row.length - row.count, row.length):
            block = int(table[r, position // block_size])
            slots.append(block * block_size + position % block_size)
    counts = [row.count for row in rows]
    return PagedMeta(
        query_start=torch.tensor([0, *torch.tensor(counts).cumsum(0)], dtype=torch.int32),
        seq_lens=torch.tensor([row.length for row in rows], dtype=torch.int32),
        block_table=table,
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
        max_query_len=max(counts, default=0),
        max_seq_len=max((row.length for row in rows), default=0),
    )


def all_slots(meta: PagedMeta, row: int, block_size: int) -> Tensor:
    """Cache entries of all tokens of a row, [S] int64."""
    position = torch.arange(int(meta.seq_lens[row]))
    return meta.block_table[row, position // block_size].long() * block_size + position % block_size


def dense_attention(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    """q [Q, N, D] against k [S, K, D], v [S, K, Dv] in float64; the queries are the last of S."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qnd,snd->nqs", q, k) * spec.scale
    if spec.softcap:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    num_queries, num_keys = scores.shape[1:]
    for i in range(num_queries):
        position = num_keys - num_queries + i
        scores[:, i, position + 1 :] = float("-inf")
        if spec.window is not None:
            scores[:, i, : max(0, position - spec.window + 1)] = float("-inf")
    return torch.einsum("nqs,snd->qnd", scores.softmax(-1), v)
