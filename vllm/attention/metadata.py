"""Attention metadata, one NamedTuple per kind."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
