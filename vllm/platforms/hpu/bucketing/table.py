"""The buckets of an engine, and which of them a launch takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.platforms.hpu.bucketing.axes import Axes, Limits
from vllm.platforms.hpu.bucketing.ranges import round_up

logger = init_logger(__name__)

# Tokens whose dense layers cost as much as one token's attention to as many others.
_DENSE_TOKENS: Final = 4096
# A block of context read costs a decode step as much as this many rows.
_ROWS_PER_BLOCK: Final = 1


class Bucket(NamedTuple):
    """Shape that launches are padded to."""

    rows: int
    query_len: int
    blocks: int  # of context, per row; of a decode launch, altogether

    def covers(self, other: Bucket) -> bool:
        return all(mine >= theirs for mine, theirs in zip(self, other, strict=True))


def prompt_cost(bucket: Bucket, block_size: int) -> int:
    """In tokens of dense layers times _DENSE_TOKENS: these, and every query's attention."""
    rows, query_len, blocks = bucket
    return rows * query_len * (_DENSE_TOKENS + query_len + blocks * block_size)


def decode_cost(bucket: Bucket) -> int:
    return bucket.rows + _ROWS_PER_BLOCK * bucket.blocks


def prompt_buckets(axes: Axes, strategy: str, limits: Limits) -> list[Bucket]:
    """Rows x contexts x query lengths that can be, ascending. Raises ConfigError if none can."""
    contexts = axes.prompt_context.values(strategy)
    found: set[Bucket] = set()
    for rows in axes.prompt_rows.values(strategy):
        for context in contexts:
            for query in axes.prompt_query.values(strategy):
                blocks = context
                # The longest contexts leave room for few new tokens, and short queries may have
                # more context than long ones.
                if limits.max_model_len >= 8192 and context == contexts[-1]:
                    room = (limits.max_model_len - query) // limits.block_size
                    blocks = room if room >= 0 else context
                bucket = Bucket(rows, query, blocks)
                if is_prompt(bucket, limits):
                    found.add(bucket)
    if not found:
        raise _no_buckets("prompt")
    return sorted(found)


def decode_buckets(axes: Axes, strategy: str, limits: Limits) -> list[Bucket]:
    """Rows x blocks that can be, ascending. Raises ConfigError if none can."""
    found: set[Bucket] = set()
    for rows in axes.decode_rows.values(strategy):
        for blocks in axes.decode_blocks.values(strategy):
            if limits.contiguous:
                found.add(Bucket(rows, 1, blocks))
            elif rows <= blocks:
                found.add(Bucket(rows, 1, min(blocks, rows * limits.blocks_per_row)))
    if not found:
        raise _no_buckets("decode")
    return sorted(found)


def is_prompt(bucket: Bucket, limits: Limits) -> bool:
    return (
        bucket.blocks <= -(-(limits.max_model_len - 1) // limits.block_size)
        and bucket.query_len <= limits.blocks_per_row * limits.block_size
        and bucket.rows * bucket.query_len <= limits.max_num_batched_tokens
    )


def _no_buckets(phase: str) -> ConfigError:
    return ConfigError(
        f"Generated 0 {phase} buckets. Please adjust the bucketing configuration: the "
        f"VLLM_{phase.upper()}_*_BUCKET_* variables or VLLM_BUCKETING_FROM_FILE leave nothing "
        "within --max-num-batched-tokens, --max-model-len and --max-num-seqs."
    )


class BucketTable:
    """Prepared buckets, and for every demand within the limits the cheapest that covers it.

    A demand that none covers takes values of the axes that there are, and of its own only where an
    axis ends below it; so however many demands there are, shapes are few.
    """

    def __init__(self, prompt: Iterable[Bucket], decode: Iterable[Bucket], limits: Limits) -> None:
        self.limits = limits
        self.prompt = tuple(sorted(set(prompt) | set(_missing_prompts(prompt, limits))))
        self.decode = tuple(sorted(set(decode) | set(_missing_decodes(decode, limits))))
        self._prompts = _Grid(
            sorted(self.prompt, key=lambda bucket: prompt_cost(bucket, limits.block_size)),
            (2, max(32, limits.block_size), 1),
        )
        self._decodes = _Grid(sorted(self.decode, key=decode_cost), (2, 1, 32))

    @property
    def max_decode_blocks(self) -> int:
        """Block references that a decode launch may have; a longer list is cut."""
        return max(bucket.blocks for bucket in self.decode)

    def find_prompt(self, rows: int, query_len: int, blocks: int) -> Bucket:
        """For `rows` prompts of at most `query_len` new tokens and `blocks` blocks of context."""
        return self._prompts.find(Bucket(rows, query_len, blocks))

    def find_decode(self, rows: int, blocks: int) -> Bucket:
        """For `rows` rows that read `blocks` blocks altogether."""
        return self._decodes.find(Bucket(rows, 1, blocks))

    def is_prepared(self, bucket: Bucket) -> bool:
        return bucket in (self.decode if bucket.query_len == 1 else self.prompt)


class _Grid:
    """Buckets in order of cost."""

    def __init__(self, buckets: Sequence[Bucket], steps: tuple[int, int, int]) -> None:
        self._buckets = list(buckets)
        self._values = np.array(buckets, np.int64)
        self._axes = [np.unique(column) for column in self._values.T]
        self._steps = steps
        self.find = lru_cache(maxsize=1 << 16)(self._find)

    def _find(self, demand: Bucket) -> Bucket:
        covering = (self._values >= np.array(demand)).all(axis=1)
        first = int(covering.argmax())
        if covering[first]:
            return self._buckets[first]
        return Bucket(*map(self._snapped, range(3), demand))

    def _snapped(self, axis: int, value: int) -> int:
        values = self._axes[axis]
        if value <= values[-1]:
            return int(values[values.searchsorted(value)])
        # Steps that grow with the value, as in "three per doubling" and so on.
        step = self._steps[axis] << max(0, value.bit_length() - 8)
        return round_up(value, step)


def _missing_prompts(buckets: Iterable[Bucket], limits: Limits) -> list[Bucket]:
    """For single prompts of each length, the longest context there can be, where none covers it."""
    known = list(buckets)
    lengths = sorted({bucket.query_len for bucket in known})
    if lengths[-1] < limits.max_query_len:
        lengths.append(limits.max_query_len)
    missing = []
    shorter = 1
    for length in lengths:
        # Prompts that take this length have more tokens than the next shorter one.
        context = max(0, limits.max_model_len - shorter - 1)
        longest = Bucket(1, length, -(-context // limits.block_size))
        if not any(bucket.covers(longest) and bucket.query_len == length for bucket in known):
            missing.append(longest)
        shorter = length
    fullest = _fullest_prompts(known, limits)
    return [*missing, *fullest]


def _fullest_prompts(known: Sequence[Bucket], limits: Limits) -> list[Bucket]:
    """Several prompts without context, of as many tokens as a step may have."""
    found = []
    for rows in range(2, limits.max_prompt_rows + 1):
        length = min(limits.max_query_len, limits.max_num_batched_tokens // rows)
        demand = Bucket(rows, max(2, length), 0)
        if not any(bucket.covers(demand) for bucket in [*known, *found]):
            found.append(demand)
    return found


def _missing_decodes(buckets: Iterable[Bucket], limits: Limits) -> list[Bucket]:
    """For each number of rows, as many blocks as they can read, where none covers that."""
    known = list(buckets)
    rows_values = sorted({bucket.rows for bucket in known} | {limits.max_num_seqs})
    cap = max(limits.max_decode_blocks, limits.blocks_per_row)
    missing = []
    for rows in rows_values:
        blocks = cap if limits.contiguous else min(cap, rows * limits.blocks_per_row)
        most = Bucket(rows, 1, max(blocks, min(rows, cap)))
        if not any(bucket.covers(most) for bucket in known):
            missing.append(most)
    return missing
