"""Steps cut by phase into launches of prepared shapes: decode rows in one, prompts in others."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from vllm.device.agreement import JoinedLaunch, LaunchSize
from vllm.device.launch import Launch, Phase, ShapeKey
from vllm.device.placement import Placement
from vllm.device.planner import Planner
from vllm.messages.step import Int32Array, StepPlan
from vllm.platforms.hpu.bucketing.demand import Demand
from vllm.platforms.hpu.bucketing.table import Bucket, BucketTable
from vllm.platforms.hpu.defragmentation import ContiguousPlacement

_NO_ROWS = np.empty(0, np.int32)


class PhasedPlanner(Planner):
    """Decode rows first, then prompts. Prompts without context may share a launch."""

    def __init__(
        self,
        buckets: BucketTable,
        block_size: int,
        contiguous: ContiguousPlacement | None = None,
        demand: Demand | None = None,
    ) -> None:
        """`contiguous`: decode reads all blocks up to the highest one of its rows."""
        self.buckets = buckets
        self.contiguous = contiguous
        self.placement = contiguous or Placement()
        self.block_size = block_size
        self.has_cache = buckets.limits.has_cache
        self.demand = demand or Demand()
        self.max_prompt_rows = buckets.limits.max_prompt_rows
        self.max_tokens = buckets.limits.max_num_batched_tokens

    def split(self, plan: StepPlan) -> Sequence[Launch]:
        is_decode = plan.counts == 1
        launches: list[Launch] = []
        if is_decode.any():
            rows = np.flatnonzero(is_decode).astype(np.int32)
            launches.extend(self._decode(plan, some) for some in self._within_list(plan, rows))
        if not is_decode.all():
            prompts = np.flatnonzero(~is_decode).astype(np.int32)
            launches.extend(self._prompts(plan, rows) for rows in self._grouped(plan, prompts))
        return launches

    def together(
        self, launches: Sequence[Launch], sizes: Sequence[Sequence[LaunchSize]]
    ) -> Iterator[JoinedLaunch]:
        """Parts have a prepared shape that all copies pad their launches to.

        Of launches that no such shape holds together, the largest goes first, with those that its
        shape holds.
        """
        for phase in (Phase.DECODE, Phase.PREFILL):
            own = deque(launch for launch in launches if launch.key.phase is phase)
            keys = [deque(size.key for size in some if size.key.phase is phase) for some in sizes]
            while any(keys):
                key = self._common([some[0] for some in keys if some])
                has_part = bool(own) and _holds(key, own[0].key)
                for some in keys:
                    if some and _holds(key, some[0]):
                        some.popleft()
                launch = _padded_to(key, own.popleft()) if has_part else self._dummy(key)
                yield JoinedLaunch(launch, launch.num_tokens)

    def _common(self, keys: Sequence[ShapeKey]) -> ShapeKey:
        """The shape of the next part, of launches of these shapes."""
        phase = keys[0].phase
        rows, query_len, blocks = (
            max(values)
            for values in zip(*((k.rows, k.query_len, k.kv_blocks) for k in keys), strict=True)
        )
        if phase is Phase.DECODE:
            bucket = self.buckets.find_decode(rows, blocks)
        else:
            bucket = self.buckets.find_prompt(rows, query_len, blocks)
        if not self.buckets.is_prepared(bucket):
            return max(keys, key=lambda key: (key.rows * key.query_len, key))
        return ShapeKey(phase, bucket.rows, bucket.query_len, bucket.blocks)

    def _dummy(self, key: ShapeKey) -> Launch:
        return padded_launch(key, _NO_ROWS, _NO_ROWS, _NO_ROWS, _NO_ROWS)

    def rehearsal(self, num_tokens: int, max_row_tokens: int) -> Launch:
        query_len = max(2, min(num_tokens, max_row_tokens))
        return self.rehearsal_of(Phase.PREFILL, self.buckets.find_prompt(1, query_len, 0))

    def rehearsal_of(self, phase: Phase, bucket: Bucket) -> Launch:
        """A launch of exactly this shape in which every row is padding."""
        return self._dummy(ShapeKey(phase, bucket.rows, bucket.query_len, bucket.blocks))

    def close(self) -> None:
        self.demand.close()

    def _decode(self, plan: StepPlan, rows: Int32Array) -> Launch:
        lengths = self._decode_blocks(plan, rows)
        num_blocks = int(lengths.sum())
        if self.contiguous is not None:
            highest = self.contiguous.highest(plan.slots[rows], lengths)
            num_blocks = max(num_blocks, highest + 1)
        bucket = self.buckets.find_decode(len(rows), num_blocks)
        self.demand.record(len(rows), 1, num_blocks)
        key = ShapeKey(Phase.DECODE, bucket.rows, 1, bucket.blocks)
        return padded_launch(key, rows, plan.slots[rows], plan.starts[rows], plan.counts[rows])

    def _within_list(self, plan: StepPlan, rows: Int32Array) -> Iterator[Int32Array]:
        """Rows in parts whose block lists are no longer than any prepared one.

        Requests that share a prefix can refer to more blocks than there are.
        """
        most = self.buckets.max_decode_blocks
        ends = np.cumsum(self._decode_blocks(plan, rows))
        begin = 0
        while begin < len(rows):
            before = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(ends.searchsorted(before + most, side="right")))
            yield rows[begin:end]
            begin = end

    def _decode_blocks(self, plan: StepPlan, rows: Int32Array) -> Int32Array:
        """Blocks that each of these rows reads, [r]."""
        if not self.has_cache:
            return np.zeros(len(rows), np.int32)
        return plan.starts[rows] // self.block_size + 1

    def _prompts(self, plan: StepPlan, rows: Int32Array) -> Launch:
        starts, counts = plan.starts[rows], plan.counts[rows]
        longest = int(counts.max())
        most_blocks = int((-(-starts // self.block_size)).max()) if self.has_cache else 0
        bucket = self.buckets.find_prompt(len(rows), longest, most_blocks)
        self.demand.record(len(rows), longest, most_blocks)
        key = ShapeKey(Phase.PREFILL, bucket.rows, bucket.query_len, bucket.blocks)
        return padded_launch(key, rows, plan.slots[rows], starts, counts)

    def _grouped(self, plan: StepPlan, rows: Int32Array) -> Iterator[Int32Array]:
        """Rows with context alone; the others in groups of similar length, longest first."""
        if self.max_prompt_rows == 1:
            yield from rows[:, None]
            return
        has_context = (plan.starts[rows] > 0) & self.has_cache
        yield from rows[has_context][:, None]
        fresh = rows[~has_context]
        fresh = fresh[np.argsort(-plan.counts[fresh], kind="stable")]
        begin = 0
        while begin < len(fresh):
            longest = int(plan.counts[fresh[begin]])
            together = min(self.max_prompt_rows, max(1, self.max_tokens // longest))
            yield np.sort(fresh[begin : begin + together])
            begin += together


def _holds(key: ShapeKey, other: ShapeKey) -> bool:
    """Whether a launch of the shape `other` can be padded to `key`."""
    return (
        key.rows >= other.rows
        and key.query_len >= other.query_len
        and key.kv_blocks >= other.kv_blocks
    )


def _padded_to(key: ShapeKey, launch: Launch) -> Launch:
    if launch.key == key:
        return launch
    rows = slice(len(launch.plan_rows_np))  # behind them are rows of the dummy slot
    return padded_launch(
        key,
        launch.plan_rows_np,
        launch.slots_np[rows],
        launch.starts_np[rows],
        launch.counts_np[rows],
    )


def padded_launch(
    key: ShapeKey,
    plan_rows: Int32Array,
    slots: Int32Array,
    starts: Int32Array,
    counts: Int32Array,
) -> Launch:
    """These rows in a launch of exactly the shape of `key`."""
    num_real, rows, query_len = len(slots), key.rows, key.query_len
    assert num_real <= rows and (not num_real or int(counts.max()) <= query_len), (key, counts)
    padded_slots, padded_starts, padded_counts = np.zeros((3, rows), np.int32)
    padded_slots[:num_real] = slots  # behind them the dummy slot, which is slot 0
    padded_starts[:num_real] = starts
    padded_counts[:num_real] = counts
    if query_len == 1:
        positions = padded_starts
        token_rows = np.arange(rows, dtype=np.int32)
    else:
        offset = np.arange(query_len, dtype=np.int32)
        positions = np.where(
            offset < padded_counts[:, None], padded_starts[:, None] + offset, np.int32(0)
        ).reshape(-1)
        token_rows = np.repeat(np.arange(rows, dtype=np.int32), query_len)
    return Launch(
        key=key,
        plan_rows_np=plan_rows,
        slots_np=padded_slots,
        starts_np=padded_starts,
        counts_np=padded_counts,
        query_start_np=np.arange(rows + 1, dtype=np.int32) * np.int32(query_len),
        positions_np=positions,
        token_rows_np=token_rows,
        is_padded=True,
    )
