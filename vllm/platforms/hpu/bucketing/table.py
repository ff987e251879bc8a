"""The buckets of an engine, and which of them a launch takes."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
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
# Hours of warm-up; what asks for more has a mistake in it.
_MOST_BUCKETS: Final = 100_000


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
    queries = axes.prompt_query.values(strategy)
    rows_values = axes.prompt_rows.values(strategy)
    _check_number("prompt", len(contexts) * len(queries) * len(rows_values))
    found: set[Bucket] = set()
    for rows in rows_values:
        # Prompts with context are launched alone; a least context other than 0 is everybody's.
        for context in contexts if rows == 1 else contexts[:1]:
            for query in queries:
                blocks = context
                # The longest contexts leave room for few new tokens, and short queries may have
                # more context than long ones.
                is_longest = limits.has_cache and context == contexts[-1]
                if limits.max_model_len >= 8192 and is_longest:
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
    rows_values, blocks_values = (
        axes.decode_rows.values(strategy),
        axes.decode_blocks.values(strategy),
    )
    _check_number("decode", len(rows_values) * len(blocks_values))
    found: set[Bucket] = set()
    for rows in rows_values:
        for blocks in blocks_values:
            if limits.contiguous or not limits.has_cache:
                found.add(Bucket(rows, 1, blocks))
            elif rows <= blocks:
                found.add(Bucket(rows, 1, min(blocks, rows * limits.blocks_per_row)))
    if not found:
        raise _no_buckets("decode")
    return sorted(found)


def is_prompt(bucket: Bucket, limits: Limits) -> bool:
    """Whether a launch can need it. Rows of one token decode."""
    return (
        bucket.query_len > 1
        and bucket.rows <= limits.max_prompt_rows
        and bucket.blocks <= limits.max_context_blocks
        and bucket.query_len <= limits.blocks_per_row * limits.block_size
        and bucket.rows * bucket.query_len <= limits.max_num_batched_tokens
    )


def _check_number(phase: str, number: int) -> None:
    if number > _MOST_BUCKETS:
        raise ConfigError(
            f"{number} {phase} buckets: each would be compiled, and {_MOST_BUCKETS} is the most "
            "that can be asked for. Set VLLM_BUCKETING_STRATEGY=exp or pad, or raise "
            f"VLLM_{phase.upper()}_*_BUCKET_STEP."
        )


def _no_buckets(phase: str) -> ConfigError:
    return ConfigError(
        f"Generated 0 {phase} buckets. Please adjust the bucketing configuration: the "
        f"VLLM_{phase.upper()}_*_BUCKET_* variables or VLLM_BUCKETING_FROM_FILE leave nothing "
        "within --max-num-batched-tokens, --max-model-len and --max-num-seqs."
    )


class BucketTable:
    """Prepared buckets, and for every demand within the limits the cheapest that covers it.

    What the given buckets do not cover of these demands is added. A demand beyond the limits takes
    values of the axes that there are, and others only where an axis ends below it, of which there
    are four to a doubling; so however many demands there are, shapes are few.
    """

    def __init__(self, prompt: Iterable[Bucket], decode: Iterable[Bucket], limits: Limits) -> None:
        self.limits = limits
        prompts, decodes = sorted(set(prompt)), sorted(set(decode))
        self.prompt = tuple(sorted({*prompts, *_missing_prompts(prompts, limits)}))
        self.decode = tuple(sorted({*decodes, *_missing_decodes(decodes, limits)}))
        # Block references that a decode launch may have; a longer list is cut.
        self.max_decode_blocks = max(bucket.blocks for bucket in self.decode)
        self._prepared = frozenset((*self.prompt, *self.decode))
        self._prompts = _Grid(
            sorted(
                self.prompt, key=lambda bucket: (prompt_cost(bucket, limits.block_size), bucket)
            ),
            (2, max(32, limits.block_size), 1),
        )
        self._decodes = _Grid(
            sorted(self.decode, key=lambda bucket: (decode_cost(bucket), bucket)), (2, 1, 32)
        )

    def find_prompt(self, rows: int, query_len: int, blocks: int) -> Bucket:
        """For `rows` prompts of at most `query_len` new tokens and `blocks` blocks of context."""
        return self._prompts.find(rows, query_len, blocks)

    def find_decode(self, rows: int, blocks: int) -> Bucket:
        """For `rows` rows that read `blocks` blocks altogether."""
        return self._decodes.find(rows, 1, blocks)

    def is_prepared(self, bucket: Bucket) -> bool:
        return bucket in self._prepared


class _Grid:
    """Buckets in order of cost."""

    def __init__(self, buckets: Sequence[Bucket], steps: tuple[int, int, int]) -> None:
        self._buckets = list(buckets)
        self._values = np.array(buckets, np.int64)
        self._axes = tuple(sorted({bucket[axis] for bucket in buckets}) for axis in range(3))
        self._steps = steps
        # A bucket covers a demand if and only if it covers what the demand becomes when each of its
        # values is rounded up to the axis, so there are no more answers than points of the grid.
        self._of_point = lru_cache(maxsize=1 << 18)(self._cheapest)

    def find(self, rows: int, query_len: int, blocks: int) -> Bucket:
        return self._of_point(
            self._snapped(0, rows), self._snapped(1, query_len), self._snapped(2, blocks)
        )

    def _cheapest(self, rows: int, query_len: int, blocks: int) -> Bucket:
        point = Bucket(rows, query_len, blocks)
        covering = np.all(self._values >= np.array(point), axis=1)
        first = int(covering.argmax())
        return self._buckets[first] if covering[first] else point

    def _snapped(self, axis: int, value: int) -> int:
        values = self._axes[axis]
        if value <= values[-1]:
            return values[bisect_left(values, value)]
        # At least eight units: what is rounded up to is rounded up to itself.
        unit = self._steps[axis]
        while 8 * unit < value:
            unit *= 2
        return round_up(value, unit)


def _missing_prompts(known: Sequence[Bucket], limits: Limits) -> Iterator[Bucket]:
    """Of the demands that can be, the largest of each length that no bucket of about it covers.

    Longer buckets would do, but then short prompts at the end of long contexts pay for them.
    """
    values = np.array(known, np.int64).reshape(-1, 3)
    for shorter, length in _halved(limits.max_query_len, limits.block_size):
        # Prompts of this length have more tokens than the next shorter one, and at least two.
        context = max(0, limits.max_model_len - max(1, shorter) - 1)
        blocks = min(-(-context // limits.block_size), limits.max_context_blocks)
        longest = Bucket(1, length, blocks)
        if not _is_covered(longest, values[2 * values[:, 1] <= 3 * length]):
            yield longest
    # Several prompts without context, of as many tokens as a step may have.
    for rows in range(limits.max_prompt_rows, 1, -1):
        length = min(limits.max_query_len, limits.max_num_batched_tokens // rows)
        fullest = Bucket(rows, max(2, length), 0)
        if not _is_covered(fullest, values):
            values = np.vstack((values, fullest))
            yield fullest


def _missing_decodes(known: Sequence[Bucket], limits: Limits) -> Iterator[Bucket]:
    """Where no bucket of about so many rows has as many blocks as these can read, one that has."""
    values = np.array(known, np.int64).reshape(-1, 3)
    # The planner cuts what is longer than the longest list that is prepared.
    most = max(limits.max_decode_blocks, int(values[:, 2].max(initial=0)))
    for _, rows in _halved(limits.max_num_seqs, 1):
        blocks = most if limits.contiguous else min(most, rows * limits.blocks_per_row)
        fullest = Bucket(rows, 1, max(blocks, min(rows, most)))
        if not _is_covered(fullest, values[2 * values[:, 0] <= 3 * rows]):
            yield fullest


def _halved(most: int, least: int) -> Iterator[tuple[int, int]]:
    """(0, v1), (v1, v2), ... with v's that double, about, from at most `least` up to `most`."""
    values = [most]
    while values[-1] > least:
        values.append(values[-1] // 2)
    return itertools.pairwise([0, *reversed(values)])


def _is_covered(demand: Bucket, values: np.ndarray) -> bool:
    return bool((values >= np.array(demand)).all(axis=1).any())
