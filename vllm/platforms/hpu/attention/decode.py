"""Decode over a flat list of blocks.

Every block is a row of a batched GEMM, whoever it belongs to: rows are spread over their blocks,
and blocks summed up to their rows, by GEMMs with a one-hot mapping. So shapes depend on the number
of rows and blocks alone, not on who owns how many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vllm.attention.interface import AttentionSpec
from vllm.platforms.hpu.attention.metadata import DecodeTables


class BlockSoftmax(NamedTuple):
    """Softmax over each block alone. N query heads, all [n, N] float32 but `weights`."""

    weights: Tensor  # [n, K, G, P] model dtype, exp(score - peak)
    peak: Tensor
    total: Tensor  # sum of weights


# scores [n, K, G, P] without bias -> BlockSoftmax
Weigh = Callable[[Tensor, DecodeTables], BlockSoftmax]
# The factor on a block's result that makes the sum over a row's blocks its softmax: [n, N] float32.
# 0 or at least finite for padding.
Merge = Callable[[BlockSoftmax, DecodeTables], Tensor]


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: DecodeTables,
    spec: AttentionSpec,
    weigh: Weigh,
    merge: Merge,
) -> Tensor:
    """q [R, N, D] over keys [n, P, K, D] and values [n, P, K, Dv] -> [R, N, Dv].

    Rows without blocks get zeros.
    """
    num_blocks, _, num_kv_heads, value_dim = values.shape
    # Scaled before it is spread, where there is less of it.
    spread = tables.mapping @ (q * spec.scale).flatten(1)  # [n, N * D]
    grouped = spread.view(num_blocks, num_kv_heads, -1, q.shape[-1])  # [n, K, G, D]
    scores = grouped @ keys.permute(0, 2, 3, 1)  # [n, K, G, P]
    if spec.softcap > 0:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    softmax = weigh(scores, tables)
    mixed = softmax.weights @ values.transpose(1, 2)  # [n, K, G, Dv]
    factor = merge(softmax, tables).to(mixed.dtype).view(num_blocks, num_kv_heads, -1, 1)
    out = tables.mapping.mT @ (mixed * factor).view(num_blocks, -1)  # [R, N * Dv]
    return out.view(-1, spec.num_heads, value_dim)


def weigh(scores: Tensor, tables: DecodeTables) -> BlockSoftmax:
    bias = tables.bias[:, None, None, :]
    biased = scores.to(bias.dtype) + bias
    peak = biased.amax(-1, keepdim=True)
    weights = torch.exp(biased - peak)
    # In float32: a bfloat16 sum of some hundred weights no longer sees the small ones.
    total = weights.sum(-1, dtype=torch.float32)
    return BlockSoftmax(weights.to(scores.dtype), peak.float().flatten(1), total.flatten(1))


def merge(softmax: BlockSoftmax, tables: DecodeTables) -> Tensor:
    mapping, rows = tables.exact_mapping, tables.group_rows
    # One row more than the launch has, for the blocks of no row.
    peaks = softmax.peak.new_full((mapping.shape[1] + 1, softmax.peak.shape[1]), -torch.inf)
    peaks = peaks.index_reduce_(0, rows, softmax.peak, "amax")
    share = torch.exp(softmax.peak - peaks.index_select(0, rows))  # [n, N], in [0, 1]
    totals = mapping @ (mapping.mT @ (softmax.total * share))  # [n, N]
    # At least 1 for blocks of a row, by the weight of its highest score; 0 for padding.
    return share / totals.clamp(min=1.0)
