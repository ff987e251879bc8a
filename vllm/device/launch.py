"""One call of the model: its rows and tokens, and its shape."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vllm.messages.step import Int32Array

if TYPE_CHECKING:  # a rank gives signs of life before it imports torch
    from torch import Tensor


class Phase(enum.IntEnum):
    MIXED = 0  # rows of any length
    PREFILL = 1
    DECODE = 2  # every row has one token


@dataclass(frozen=True, slots=True, order=True)
class ShapeKey:
    """Shape of one launch: key of the graph table, unit of warm-up, name in logs."""

    phase: Phase
    rows: int
    query_len: int  # tokens of the longest row; of every row on static-shape platforms
    kv_blocks: int  # blocks of the first KV group that the launch can look at; 0 without a cache

    def __str__(self) -> str:
        return f"{self.phase.name.lower()}[{self.rows}x{self.query_len}, {self.kv_blocks} blocks]"


@dataclass(frozen=True, slots=True)
class Launch:
    """One call of the model over R rows and T flat tokens. Host arrays, not written after creation.

    Token t belongs to launch row token_rows_np[t], hence to slot slots_np[token_rows_np[t]], and
    has position positions_np[t] in its request. The tokens of row r are
    [query_start_np[r], query_start_np[r] + counts_np[r]), in order of position.

    A padded launch has exactly the shape of its key: key.rows rows, those behind the plan's being
    the dummy slot's with no token, of key.query_len tokens each; tokens behind a row's own have
    position 0 and must be written to the dummy block only.
    """

    key: ShapeKey
    plan_rows_np: Int32Array  # [<= R] row of the StepPlan that each launch row is
    slots_np: Int32Array  # [R]
    starts_np: Int32Array  # [R] position of a row's first token
    counts_np: Int32Array  # [R] tokens of a row, without padding
    query_start_np: Int32Array  # [R + 1]
    positions_np: Int32Array  # [T]
    token_rows_np: Int32Array  # [T]
    is_padded: bool = False

    @property
    def num_rows(self) -> int:
        return len(self.slots_np)

    @property
    def num_tokens(self) -> int:
        return len(self.positions_np)


def _read_only_range(count: int) -> Int32Array:
    array = np.arange(count, dtype=np.int32)
    array.flags.writeable = False
    return array


_ascending = _read_only_range(1024)


def ascending(count: int) -> Int32Array:
    """0 .. count - 1, shared by all who ask."""
    global _ascending
    if count > len(_ascending):
        _ascending = _read_only_range(2 * count)
    return _ascending[:count]


def make_launch(
    slots: Int32Array,
    starts: Int32Array,
    counts: Int32Array,
    block_size: int,
    plan_rows: Int32Array | None = None,
) -> Launch:
    """The launch of these rows, unpadded. `plan_rows` defaults to 0..R-1.

    `block_size`: tokens per block of the KV cache; 0: the model has none.
    """
    num_rows = len(slots)
    row_ids = ascending(num_rows)
    num_tokens = int(counts.sum())
    longest = int(counts.max())
    if longest == 1 and num_tokens == num_rows:
        phase, token_rows, positions = Phase.DECODE, row_ids, starts
        query_start = ascending(num_rows + 1)
        kv_blocks = num_rows + int((starts // block_size).sum()) if block_size else 0
    else:
        phase = Phase.MIXED
        query_start = np.zeros(num_rows + 1, np.int32)
        np.cumsum(counts, out=query_start[1:])
        token_rows = np.repeat(row_ids, counts)
        positions = np.arange(num_tokens, dtype=np.int32)
        positions += np.repeat(starts - query_start[:-1], counts)
        ends = starts + counts
        kv_blocks = int((-(-ends // block_size)).sum()) if block_size else 0
    return Launch(
        key=ShapeKey(phase, num_rows, longest, kv_blocks),
        plan_rows_np=row_ids if plan_rows is None else plan_rows,
        slots_np=slots,
        starts_np=starts,
        counts_np=counts,
        query_start_np=query_start,
        positions_np=positions,
        token_rows_np=token_rows,
    )


# What a launch gives the model: a NamedTuple of tensors per kind, such as TokenInputs. Every kind
# has `positions`; as with AttentionMeta, no kind carries the fields of another.
ForwardInputs = Any


class StageInputs(NamedTuple):
    """What the pipeline stage before this one made of a launch."""

    hidden: Tensor  # [T, H]
    positions: Tensor  # [T] int32


class TokenInputs(NamedTuple):
    """The tokens of one launch."""

    token_ids: Tensor  # [T] int32
    positions: Tensor  # [T] int32
