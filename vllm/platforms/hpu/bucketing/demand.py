"""What launches ask for, recorded to choose better buckets for the next start."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from vllm.errors import ConfigError
from vllm.logger import init_logger
from vllm.platforms.hpu.bucketing.axes import Limits
from vllm.platforms.hpu.bucketing.file import write_buckets
from vllm.platforms.hpu.bucketing.ranges import round_up
from vllm.platforms.hpu.bucketing.table import (
    Bucket,
    BucketTable,
    decode_cost,
    is_prompt,
    prompt_cost,
)
from vllm.version import __version__

logger = init_logger(__name__)

# Candidates are the products of so many values per axis: rows, query length, blocks.
_PROMPT_POINTS: Final = (6, 32, 20)
_DECODE_POINTS: Final = (32, 1, 40)
# Values above are recorded to five binary digits: off by 3 % at most, and few however long it runs.
_EXACT: Final = 32


class Demand:
    """What launches asked for. This one forgets it."""

    def record(self, rows: int, query_len: int, blocks: int) -> None:
        """A launch of `rows` rows of at most `query_len` tokens; query_len 1: a decode."""

    def close(self) -> None:
        """Nothing more will come."""


class RecordedDemand(Demand):
    """Counts demands, and in the end writes a file of buckets chosen for them."""

    def __init__(self, path: Path, table: BucketTable) -> None:
        """Raises ConfigError if nothing can be written to `path`."""
        is_new = not path.exists()
        try:
            path.open("a", encoding="utf-8").close()
            if is_new:
                path.unlink()
        except OSError as error:
            raise ConfigError(
                f"VLLM_BUCKETING_TO_FILE={path}: cannot be written: {error}"
            ) from None
        self._path = path
        self._table = table
        self.counts: dict[Bucket, int] = {}

    def record(self, rows: int, query_len: int, blocks: int) -> None:
        demand = Bucket(rows, _recorded(query_len), _recorded(blocks))
        self.counts[demand] = self.counts.get(demand, 0) + 1

    def close(self) -> None:
        if not self.counts:
            logger.warning("%s: nothing was launched, so no buckets are chosen", self._path)
            return
        prompt, decode = chosen_buckets(self.counts, self._table)
        launches = sum(self.counts.values())
        stamp = (
            f"Chosen by vllm {__version__} for {launches} recorded launches; "
            f"--block-size {self._table.limits.block_size}."
        )
        try:
            write_buckets(self._path, [*prompt, *decode], stamp)
        except OSError:
            logger.exception("%s: the chosen buckets are lost", self._path)
            return
        logger.info(
            "%s: %d prompt and %d decode buckets, chosen for %d launches",
            self._path,
            len(prompt),
            len(decode),
            launches,
        )


def _recorded(value: int) -> int:
    return value if value <= _EXACT else round_up(value, 1 << (value.bit_length() - 5))


def chosen_buckets(
    counts: Mapping[Bucket, int], table: BucketTable
) -> tuple[list[Bucket], list[Bucket]]:
    """Of the least padding for demands that come so often, and no more of them than `table` has.

    A phase that was never asked for keeps the buckets of `table`.
    """
    limits = table.limits
    prompts: dict[Bucket, int] = {}
    decodes: dict[Bucket, int] = {}
    for (rows, query_len, blocks), count in counts.items():
        if query_len == 1:
            demand = Bucket(rows, 1, min(blocks, table.max_decode_blocks))
            decodes[demand] = decodes.get(demand, 0) + count
        else:
            # Kernels work on whole blocks, so shorter differences save nothing.
            length = min(round_up(query_len, limits.block_size), limits.max_query_len)
            demand = Bucket(rows, length, min(blocks, limits.max_context_blocks))
            prompts[demand] = prompts.get(demand, 0) + count
    needed = BucketTable((), (), limits)
    prompt = _cheapest_set(
        prompts,
        needed.prompt,
        len(table.prompt),
        _PROMPT_POINTS,
        lambda bucket: prompt_cost(bucket, limits.block_size),
        lambda bucket: _is_useful_prompt(bucket, limits),
    )
    decode = _cheapest_set(
        decodes,
        needed.decode,
        len(table.decode),
        _DECODE_POINTS,
        decode_cost,
        lambda bucket: bucket.blocks >= bucket.rows or limits.contiguous or not limits.has_cache,
    )
    return prompt or list(table.prompt), decode or list(table.decode)


def _is_useful_prompt(bucket: Bucket, limits: Limits) -> bool:
    return is_prompt(bucket, limits) and (bucket.rows == 1 or not bucket.blocks)


def _cheapest_set(
    counts: Mapping[Bucket, int],
    needed: Sequence[Bucket],
    number: int,
    points: tuple[int, int, int],
    cost: Callable[[Bucket], int],
    is_allowed: Callable[[Bucket], bool],
) -> list[Bucket]:
    """At most `number` buckets: `needed`, and one by one what saves most at that point.

    What is saved shrinks with every bucket there is already, so the greedy choice is at least
    63 % as good as the best one.
    """
    if not counts:
        return []
    demands = np.array(list(counts), np.int64)
    weights = np.array(list(counts.values()), np.float64)
    axes = [
        _quantiles(column, weights, most) for column, most in zip(demands.T, points, strict=True)
    ]
    products = itertools.starmap(Bucket, itertools.product(*axes))
    candidates = [*needed, *(bucket for bucket in products if is_allowed(bucket))]
    costs = np.array([cost(bucket) for bucket in candidates], np.float64)
    demands, weights = _snapped(demands, weights, axes)
    # [candidates, demands]: what a demand costs in a candidate, infinite where it does not fit.
    covers = np.all(np.array(candidates)[:, None, :] >= demands[None], axis=2)
    priced = np.where(covers, costs[:, None], np.inf)
    # A demand without a bucket costs more than any that has one.
    least = np.minimum(2 * costs.max() + 1, priced[: len(needed)].min(axis=0))
    chosen = set(needed)
    while len(chosen) < number:
        saved = np.maximum(least - priced, 0) @ weights
        best = int(saved.argmax())
        if saved[best] <= 0:
            break
        chosen.add(candidates[best])
        least = np.minimum(least, priced[best])
    return sorted(chosen)


def _quantiles(values: np.ndarray, weights: np.ndarray, most: int) -> list[int]:
    """At most `most` of the values, the greatest among them, with about equal weight between."""
    found, inverse = np.unique(values, return_inverse=True)
    if len(found) <= most:
        return [int(value) for value in found]
    shares = np.cumsum(np.bincount(inverse.reshape(-1), weights))
    at = shares.searchsorted(np.linspace(0, shares[-1], most + 1)[1:-1])
    return [int(value) for value in np.unique([*found[at], found[-1]])]


def _snapped(
    demands: np.ndarray, weights: np.ndarray, axes: Iterable[list[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Demands rounded up to the axes, and the weight of each point."""
    columns = [
        np.array(axis)[np.searchsorted(axis, column)]
        for axis, column in zip(axes, demands.T, strict=True)
    ]
    points, inverse = np.unique(np.stack(columns, 1), axis=0, return_inverse=True)
    return points, np.bincount(inverse.reshape(-1), weights)
