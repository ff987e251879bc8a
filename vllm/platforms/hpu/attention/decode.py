"""Decode over a flat list of blocks.

Every block is a row of a batched GEMM, whoever it belongs to: rows are spread over their blocks,
and blocks summed up to their rows, by GEMMs with a one-hot mapping. So shapes depend on the number
of rows and blocks alone, not on who owns how many.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.device.attention import AttentionSpec
from vllm.platforms.hpu.attention.metadata import DecodeTables
from vllm.platforms.hpu.attention.softmax import BlockSoftmax


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: DecodeTables,
    spec: AttentionSpec,
    softmax: BlockSoftmax,
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
    weights, factor = softmax(scores, tables)
    mixed = weights @ values.transpose(1, 2)  # [n, K, G, Dv]
    scaled = (mixed * factor.to(mixed.dtype)).view(num_blocks, -1)
    return (tables.mapping.mT @ scaled).view(-1, spec.num_heads, value_dim)
