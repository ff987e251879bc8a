"""Host side of attention: block lists and tables of padded launches, in NumPy without loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vllm.messages.step import Int32Array

Int64Array = np.ndarray

DUMMY_BLOCK = 0  # padding writes to it and nobody's result depends on it
NO_GROUP = -1


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Facts of a KV group that its launches do not change."""

    block_size: int
    window: int | None

    def decode_blocks(self, rows: int, kv_blocks: int) -> int:
        """Length of the block list of a decode launch."""
        if self.window is None:
            return kv_blocks
        return min(kv_blocks, rows * _blocks_spanned(self.window, self.block_size))

    def context_blocks(self, kv_blocks: int) -> int:
        """Columns of the context table of a prefill launch."""
        if self.window is None:
            return kv_blocks
        # A row's first query is one of the tokens in its window, and not part of its context.
        return min(kv_blocks, _blocks_spanned(self.window - 1, self.block_size))


def _blocks_spanned(num_tokens: int, block_size: int) -> int:
    """Most blocks that consecutive tokens can lie in."""
    return 0 if num_tokens == 0 else (num_tokens + block_size - 2) // block_size + 1


class DecodeLists(NamedTuple):
    """Host form of DecodeMeta."""

    block_list: Int64Array
    block_groups: Int64Array
    block_range: Int32Array
    slot_mapping: Int64Array


class PromptLists(NamedTuple):
    """Host form of PromptMeta."""

    query_lens: Int32Array
    context_lens: Int32Array
    context_blocks: Int64Array
    slot_mapping: Int64Array


@dataclass(frozen=True, slots=True)
class Rows:
    """The real rows of a launch; they come first, `num_padded` counts the others too."""

    num_padded: int
    slots: Int32Array
    starts: Int32Array  # context length
    counts: Int32Array


def plan_decode(
    rows: Rows, table: Int32Array, shape: GroupShape, num_blocks: int, contiguous: bool
) -> DecodeLists:
    """Lists of `num_blocks` entries. `contiguous`: entry j is about block j."""
    size = shape.block_size
    last = rows.starts // size  # [r], column of the new token
    reach = rows.starts if shape.window is None else np.minimum(rows.starts, shape.window - 1)
    first_token = rows.starts - reach
    first = first_token // size
    lengths = last - first + 1
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    groups = np.repeat(np.arange(len(lengths)), lengths)
    columns = np.arange(total) - np.repeat(ends - lengths - first, lengths)
    block_ids = table[rows.slots[groups], columns].astype(np.int64)
    if contiguous:
        where = block_ids
        needed = int(block_ids.max()) + 1 if total else 0
    else:
        where, needed = np.arange(total), total
    assert needed <= num_blocks, f"rows read {needed} blocks, the launch was made for {num_blocks}"
    block_list = np.full(num_blocks, DUMMY_BLOCK, np.int64)
    block_groups = np.full(num_blocks, NO_GROUP, np.int64)
    block_range = np.zeros((2, num_blocks), np.int32)
    block_range[1] = 1  # padding sees one token, as the softmax of none is not a number
    block_list[where] = block_ids
    block_groups[where] = groups
    block_range[1, where] = size
    block_range[1, where[ends - 1]] = rows.starts % size + 1
    if shape.window is not None:
        block_range[0, where[ends - lengths]] = first_token % size
    slot_mapping = _dummy_slots(rows.num_padded, size)
    newest = table[rows.slots, last].astype(np.int64)
    slot_mapping[: len(newest)] = newest * size + rows.starts % size
    return DecodeLists(block_list, block_groups, block_range, slot_mapping)


def plan_prompt(
    rows: Rows, table: Int32Array, shape: GroupShape, query_len: int, num_blocks: int
) -> PromptLists:
    """Tables of `num_blocks` context columns, for `query_len` tokens per row."""
    size, num_rows, num_real = shape.block_size, rows.num_padded, len(rows.slots)
    window = shape.window
    reach = rows.starts if window is None else np.minimum(rows.starts, window - 1)
    first_token = rows.starts - reach
    first = first_token // size
    context_lens = np.zeros(num_rows, np.int32)
    context_lens[:num_real] = np.where(first_token < rows.starts, rows.starts - first * size, 0)
    needed = -(-context_lens // size)  # [R]
    assert needed.max(initial=0) <= num_blocks, (
        f"a row has {needed.max()} blocks of context, the launch was made for {num_blocks}"
    )
    context_blocks = np.full((num_rows, num_blocks), DUMMY_BLOCK, np.int64)
    if num_blocks:
        column = np.arange(num_blocks)
        wanted = np.minimum(np.add.outer(first, column), table.shape[1] - 1)
        found = table[rows.slots[:, None], wanted]
        used = column < needed[:num_real, None]
        context_blocks[:num_real] = np.where(used, found, DUMMY_BLOCK)
    query_lens = np.ones(num_rows, np.int32)
    query_lens[:num_real] = rows.counts
    slot_mapping = _dummy_slots(num_rows * query_len, size).reshape(num_rows, query_len)
    offset = np.arange(query_len)
    positions = rows.starts[:, None] + offset  # [r, Q]
    real = offset < rows.counts[:, None]
    column = np.minimum(positions // size, table.shape[1] - 1)
    entries = table[rows.slots[:, None], column].astype(np.int64) * size + positions % size
    np.copyto(slot_mapping[:num_real], entries, where=real)
    return PromptLists(query_lens, context_lens, context_blocks, slot_mapping.reshape(-1))


def _dummy_slots(num_tokens: int, block_size: int) -> Int64Array:
    """Distinct entries of the dummy block as far as it has them: writes then do not collide."""
    return DUMMY_BLOCK * block_size + np.arange(num_tokens, dtype=np.int64) % block_size
