from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.device.launch import Phase
from vllm.device.planner import UnifiedPlanner
from vllm.messages.step import StepPlan

ROWS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 500), st.integers(1, 70)),
    min_size=1,
    max_size=20,
)


def plan_of(rows: list[tuple[int, int, int]]) -> StepPlan:
    slots, starts, counts = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    return StepPlan(
        step=0,
        slots=slots,
        starts=starts,
        counts=counts,
        samples=np.ones(len(rows), bool),
        releases=np.empty(0, np.int32),
        admissions=(),
        blocks=np.empty((0, 4), np.int32),
    )


@given(rows=ROWS, block_size=st.sampled_from([1, 16, 32]))
def test_a_launch_lists_every_token_of_every_row_in_order(
    rows: list[tuple[int, int, int]], block_size: int
) -> None:
    (launch,) = UnifiedPlanner(block_size).split(plan_of(rows))
    expected = [(r, start + i) for r, (_, start, count) in enumerate(rows) for i in range(count)]
    assert list(zip(launch.token_rows_np, launch.positions_np, strict=True)) == expected
    assert launch.num_tokens == len(expected) and launch.num_rows == len(rows)
    for r, (slot, start, count) in enumerate(rows):
        assert launch.slots_np[r] == slot and launch.plan_rows_np[r] == r
        first, end = launch.query_start_np[r : r + 2]
        assert (launch.positions_np[first], end - first) == (start, count)
    assert launch.key.kv_blocks == sum(-(-(start + n) // block_size) for _, start, n in rows)
    assert launch.key.query_len == max(count for _, _, count in rows)
    for array in (launch.token_rows_np, launch.positions_np, launch.query_start_np):
        assert array.dtype == np.int32


@given(rows=ROWS)
def test_without_a_cache_a_launch_is_the_same_but_has_no_blocks(
    rows: list[tuple[int, int, int]],
) -> None:
    (launch,), (usual,) = (UnifiedPlanner(size).split(plan_of(rows)) for size in (0, 16))
    assert launch.key == replace(usual.key, kv_blocks=0)
    assert launch.positions_np.tolist() == usual.positions_np.tolist()


@pytest.mark.parametrize(
    ("counts", "phase"),
    [([1, 1, 1], Phase.DECODE), ([1, 5], Phase.MIXED), ([1], Phase.DECODE)],
)
def test_a_launch_of_single_tokens_is_a_decode(counts: list[int], phase: Phase) -> None:
    rows = [(i + 1, 10 * i, count) for i, count in enumerate(counts)]
    (launch,) = UnifiedPlanner(16).split(plan_of(rows))
    assert launch.key.phase is phase


def test_a_plan_without_rows_needs_no_launch() -> None:
    empty = np.empty(0, np.int32)
    plan = StepPlan(1, empty, empty, empty, np.empty(0, bool), empty, (), np.empty((0, 4)))
    assert len(UnifiedPlanner(16).split(plan)) == 0


def test_a_key_names_its_phase_and_shape() -> None:
    (launch,) = UnifiedPlanner(16).split(plan_of([(1, 0, 20), (2, 30, 1)]))
    assert str(launch.key) == "mixed[2x20, 4 blocks]"
