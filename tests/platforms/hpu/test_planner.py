from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.device.launch import Phase
from vllm.messages.step import StepPlan
from vllm.platforms.hpu.bucketing.axes import Limits, default_axes
from vllm.platforms.hpu.bucketing.table import Bucket, BucketTable, decode_buckets, prompt_buckets
from vllm.platforms.hpu.planner import PhasedPlanner

Row = tuple[int, int, int]  # slot, start, count


def planner(max_prompt_rows: int = 1, num_blocks: int = 40) -> PhasedPlanner:
    limits = Limits(8, max_prompt_rows, 256, 512, 16, num_blocks)
    axes = default_axes("exponential", limits)
    table = BucketTable(
        prompt_buckets(axes, "exponential", limits),
        decode_buckets(axes, "exponential", limits),
        limits,
    )
    return PhasedPlanner(table, 16)


def plan_of(rows: Sequence[Row]) -> StepPlan:
    slots, starts, counts = np.array(rows, np.int32).reshape(-1, 3).T.copy()
    empty = np.empty(0, np.int32)
    samples = np.ones(len(rows), bool)
    return StepPlan(1, slots, starts, counts, samples, empty, (), np.empty((0, 4), np.int32))


def test_decode_rows_share_a_launch_and_prompts_come_after_it() -> None:
    plan = plan_of([(1, 0, 20), (2, 30, 1), (3, 64, 40), (4, 15, 1)])
    decode, first, second = planner().split(plan)
    assert decode.key.phase is Phase.DECODE
    assert decode.plan_rows_np.tolist() == [1, 3]
    assert decode.key.rows >= 2 and decode.key.kv_blocks >= 3
    assert [first.plan_rows_np.tolist(), second.plan_rows_np.tolist()] == [[0], [2]]
    assert second.key.kv_blocks >= 4


def test_prompts_with_context_are_alone_and_others_in_groups_of_similar_length() -> None:
    plan = plan_of([(1, 0, 20), (2, 32, 20), (3, 0, 90), (4, 0, 80), (5, 0, 21)])
    launches = planner(max_prompt_rows=2).split(plan)
    assert [launch.plan_rows_np.tolist() for launch in launches] == [[1], [2, 3], [0, 4]]


def test_prompts_that_would_exceed_a_steps_tokens_together_are_launched_apart() -> None:
    plan = plan_of([(1, 0, 129), (2, 0, 120)])
    launches = planner(max_prompt_rows=2).split(plan)
    assert all(launch.num_tokens <= 256 for launch in launches)


def test_without_a_cache_launches_have_no_blocks_and_chunks_share_them() -> None:
    rows = [(1, 0, 20), (2, 300, 1), (3, 64, 20), (4, 15, 1)]
    decode, prompts = planner(max_prompt_rows=2, num_blocks=0).split(plan_of(rows))
    assert (decode.plan_rows_np.tolist(), decode.key.kv_blocks) == ([1, 3], 0)
    assert (prompts.plan_rows_np.tolist(), prompts.key.kv_blocks) == ([0, 2], 0)


def test_block_lists_longer_than_any_prepared_one_are_cut() -> None:
    some = planner(num_blocks=20)
    most = some.buckets.max_decode_blocks
    plan = plan_of([(slot, 500, 1) for slot in range(1, 9)])
    launches = some.split(plan)
    assert len(launches) > 1
    assert all(launch.key.kv_blocks <= most for launch in launches)
    keys = [launch.key for launch in launches]
    assert all(some.buckets.is_prepared(Bucket(key.rows, 1, key.kv_blocks)) for key in keys)
    assert sorted(row for launch in launches for row in launch.plan_rows_np) == list(range(8))


@pytest.mark.parametrize("max_prompt_rows", [1, 3])
@settings(max_examples=150, deadline=None)
@given(
    data=st.lists(
        st.tuples(st.integers(0, 400), st.one_of(st.just(1), st.integers(1, 100))),
        min_size=1,
        max_size=8,
    )
)
def test_launches_have_the_shape_of_their_key_and_hold_every_row_once(
    max_prompt_rows: int, data: list[tuple[int, int]]
) -> None:
    data = [(min(start, 512 - count), count) for start, count in data]
    rows, tokens = [], 0
    for slot, (start, count) in enumerate(data, start=1):
        if tokens + count <= 256:
            rows.append((slot, start, count))
            tokens += count
    plan = plan_of(rows)
    seen: list[int] = []
    for launch in planner(max_prompt_rows).split(plan):
        key, real = launch.key, len(launch.plan_rows_np)
        seen.extend(launch.plan_rows_np.tolist())
        assert launch.is_padded and launch.num_rows == key.rows
        assert launch.num_tokens == key.rows * key.query_len
        assert launch.query_start_np.tolist() == [r * key.query_len for r in range(key.rows + 1)]
        assert not launch.slots_np[real:].any() and not launch.counts_np[real:].any()
        for row, plan_row in enumerate(launch.plan_rows_np):
            begin = launch.query_start_np[row]
            count, start = plan.counts[plan_row], plan.starts[plan_row]
            assert launch.slots_np[row] == plan.slots[plan_row]
            own = launch.positions_np[begin : begin + count]
            assert own.tolist() == list(range(start, start + count))
            padding = launch.positions_np[begin + count : begin + key.query_len]
            assert not padding.any()
        blocks = -(-plan.starts[launch.plan_rows_np] // 16)
        if key.phase is Phase.DECODE:
            assert key.kv_blocks >= (plan.starts[launch.plan_rows_np] // 16 + 1).sum()
        else:
            assert key.kv_blocks >= blocks.max()
    assert sorted(seen) == list(range(len(rows)))
