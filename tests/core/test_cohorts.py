"""Pipeline stages share out the running requests, and results may hold several tokens per row."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.core.conftest import PIPELINES, Engine, expected, layout
from vllm.core.row_tokens import RowTokens
from vllm.messages.engine import FinishReason
from vllm.messages.step import StepResult

ONE_BY_ONE = 100  # rows from which on requests may be planned together
STAGES = 3


def make_engine(num_requests: int, depth: int, least_steady_rows: int) -> Engine:
    engine = Engine(
        layout(num_blocks=256),
        pipeline_depth=depth,
        num_stages=STAGES,
        max_num_seqs=16,
        least_steady_rows=least_steady_rows,
    )
    for i in range(num_requests):
        engine.add(str(i), [i + 1], max_tokens=60)
    return engine


@pytest.mark.parametrize("least_steady_rows", [0, ONE_BY_ONE])
@pytest.mark.parametrize("num_requests", [1, 2, 3, 9, 10, 16])
@pytest.mark.parametrize("depth", [3, 4])
def test_every_stage_has_a_cohort_and_every_request_its_turn(
    depth: int, num_requests: int, least_steady_rows: int
) -> None:
    engine = make_engine(num_requests, depth, least_steady_rows)
    while len(engine.plans) < 40:
        engine.step()
    sizes = [plan.num_rows for plan in engine.plans]
    assert max(sizes[2 * STAGES :]) == -(-num_requests // STAGES)
    turns = [plan.slots.tolist() for plan in engine.plans[2 * STAGES :]]
    most_steps = min(STAGES, num_requests)  # without a request a stage has no step
    for first in range(len(turns) - most_steps):
        together = [slot for slots in turns[first : first + most_steps] for slot in slots]
        assert sorted(together) == list(range(1, num_requests + 1)), first
    engine.run()
    assert all(engine.outputs[str(i)] == expected([i + 1], 60) for i in range(num_requests))


@pytest.mark.parametrize("least_steady_rows", [0, 4, ONE_BY_ONE])
def test_no_request_is_left_behind_while_others_come_and_go(least_steady_rows: int) -> None:
    draw = random.Random(0)
    engine = make_engine(5, STAGES, least_steady_rows)
    last_turn: dict[int, int] = {}
    waits = []
    for i in range(60):
        if draw.random() < 0.3:
            prompt = [draw.randrange(50) for _ in range(draw.choice([1, 5, 30]))]
            engine.add(f"r{i}", prompt, max_tokens=draw.choice([2, 5, 20]))
        engine.step()
        plan = engine.plans[-1]
        for slot in plan.slots.tolist():
            if slot in last_turn and slot not in [a.slot for a in plan.admissions]:
                waits.append(plan.step - last_turn[slot])
            last_turn[slot] = plan.step
    engine.run()
    # Admissions are no part of a cohort: requests that start together take turns at first.
    assert STAGES in waits and max(waits) <= 2 * STAGES


def test_rows_that_are_planned_together_and_one_by_one_share_a_cohort() -> None:
    engine = make_engine(6, STAGES, least_steady_rows=0)
    for i in range(6):
        engine.add(f"one by one {i}", [40 + i], max_tokens=60, logprobs=0)
    while len(engine.plans) < 30:
        engine.step()
    assert engine.num_steady
    assert max(plan.num_rows for plan in engine.plans[2 * STAGES :]) == 12 / STAGES
    engine.run()


def test_plans_bring_values_to_several_stages_alone() -> None:
    for num_stages in (1, STAGES):
        engine = Engine(pipeline_depth=STAGES, num_stages=num_stages)
        engine.add("a", [1, 2, 3], max_tokens=5)
        engine.run()
        given = [row for plan in engine.plans for row in plan.given.tolist()]
        slot = int(engine.plans[0].slots[0])
        values = [[slot, 3 + i, token] for i, token in enumerate(engine.outputs["a"][:-1])]
        assert given == (values if num_stages > 1 else [])


@pytest.mark.parametrize("least_steady_rows", [0, ONE_BY_ONE])
@pytest.mark.parametrize(("depth", "num_stages"), [(1, 1), (3, 3), (4, 3)])
@pytest.mark.parametrize("most_tokens", [2, 3, 5])
def test_a_draw_of_several_tokens_is_taken_over_up_to_the_one_that_ends_the_request(
    most_tokens: int, depth: int, num_stages: int, least_steady_rows: int
) -> None:
    engine = Engine(
        pipeline_depth=depth,
        num_stages=num_stages,
        most_tokens=most_tokens,
        least_steady_rows=least_steady_rows,
    )
    plain = expected([5, 6], 30)
    stop = next(token for i, token in enumerate(plain) if i > 6 and token not in plain[:i])
    stops = frozenset([stop])
    for i in range(4):
        engine.add(f"length {i}", [i, i + 1], max_tokens=37 + i)
    engine.add("stop", [5, 6], max_tokens=30, stop_token_ids=[stop])
    engine.run()
    for i in range(4):
        assert engine.outputs[f"length {i}"] == expected([i, i + 1], 37 + i)
    assert engine.outputs["stop"] == expected([5, 6], 30, stops=stops)
    assert engine.reasons["stop"] is FinishReason.STOP
    assert sum(plan.num_rows for plan in engine.plans) < 150
    if not least_steady_rows:
        assert engine.num_steady, "rows of one token between those of several"


def test_tokens_of_a_result_by_row() -> None:
    token_ids = np.arange(7, dtype=np.int32)
    drawn = RowTokens(StepResult(1, token_ids, counts=np.array([1, 3, 1, 2], np.int32)))
    assert [drawn.span(i) for i in range(4)] == [(0, 1), (1, 4), (4, 5), (5, 7)]
    first, several = drawn.first(3)
    assert (first.tolist(), several) == ([0, 1, 4], [1])
    single = RowTokens(StepResult(1, token_ids))
    assert [single.span(i) for i in range(2)] == [(0, 1), (1, 2)]
    assert single.first(2)[0].tolist() == [0, 1] and single.first(2)[1] == []


@pytest.mark.parametrize(("depth", "num_stages"), PIPELINES)
def test_several_stages_draw_nothing_in_vain(depth: int, num_stages: int) -> None:
    engine = Engine(pipeline_depth=depth, num_stages=num_stages)
    stop = expected([7, 7], 9)[4]
    engine.add("a", [7, 7], max_tokens=50, stop_token_ids=[stop])
    engine.run()
    length = len(engine.outputs["a"])
    drawn = sum(int(plan.samples.sum()) for plan in engine.plans)
    assert drawn == length + (depth - 1 if num_stages == 1 else 0)
