"""What a padded launch says to attention: uploaded by `plan`, completed on the device by `expand`.

All are tuples of tensors and of constants of the model: a number that changed from launch to launch
would be part of the key of a captured graph, hence a capture per value.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DecodeMeta(NamedTuple):
    """R rows of one token each, and the n blocks they read, in any order."""

    block_list: Tensor  # [n] int64, block ids; padding: the dummy block
    block_groups: Tensor  # [n] int64, the row that reads the block; padding: -1
    # int32, because a bfloat16 does not hold every offset of a block of more than 256 tokens.
    block_range: Tensor  # [2, n] int32, first visible offset and the one behind the last
    slot_mapping: Tensor  # [R] int64, cache entry of a row's token
    block_size: int
    contiguous: bool  # entry j of the lists describes block j


class PromptMeta(NamedTuple):
    """R rows of T / R tokens each, behind at most C blocks of context."""

    query_lens: Tensor  # [R] int32, real tokens of a row, at least 1
    context_lens: Tensor  # [R] int32, tokens in context_blocks that precede the row's first one
    context_blocks: Tensor  # [R, C] int64; padding: the dummy block
    slot_mapping: Tensor  # [T] int64
    block_size: int
    window: int  # 0: none


class DecodeTables(NamedTuple):
    """DecodeMeta, made ready for every layer of a KV group. S: dtype of the softmax."""

    block_list: Tensor  # [n] int64
    block_groups: Tensor  # [n] int64
    group_rows: Tensor  # [n] int64, block_groups with R for padding
    mapping: Tensor  # [n, R] model dtype, one-hot; zeros for padding
    exact_mapping: Tensor  # [n, R] float32
    bias: Tensor  # [n, P] S, 0 or -inf; no row is -inf throughout
    slot_mapping: Tensor  # [R] int64
    contiguous: bool


class PromptTables(NamedTuple):
    """PromptMeta, made ready for every layer of a KV group."""

    query_lens: Tensor  # [R] int32
    context_blocks: Tensor  # [R, C] int64
    slot_mapping: Tensor  # [T] int64
    # Additive, [R, 1, Q, C * P + Q] S; [0] where a causal kernel needs none.
    mask: Tensor
    block_size: int
    window: int
