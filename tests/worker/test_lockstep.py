"""What each rank runs of a step that copies of the model take together."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from tests.models.ranks import InThread, on_ranks
from vllm.device.agreement import AgreedTokens
from vllm.device.launch import Launch, Phase
from vllm.device.planner import Planner, UnifiedPlanner
from vllm.messages.step import StepPlan
from vllm.platforms.hpu.bucketing.axes import Limits
from vllm.platforms.hpu.bucketing.table import Bucket, BucketTable
from vllm.platforms.hpu.planner import PhasedPlanner
from vllm.worker.lockstep import Lockstep

BLOCK_SIZE = 16
MAX_ROWS, MAX_TOKENS, MAX_LEN = 8, 64, 128


def step(rng: random.Random, num_rows: int, decodes: bool) -> StepPlan:
    """A step of these rows, whose slots are numbered from 1."""
    counts = [1 if decodes or rng.random() < 0.5 else rng.randrange(2, 9) for _ in range(num_rows)]
    starts = [rng.randrange(1, 90) if c == 1 else rng.choice((0, 16, 32)) for c in counts]
    columns = {"slots": range(1, num_rows + 1), "starts": starts, "counts": counts}
    arrays = {name: np.array(list(values), np.int32) for name, values in columns.items()}
    return cast(StepPlan, SimpleNamespace(num_rows=num_rows, **arrays))


def phased() -> PhasedPlanner:
    limits = Limits(
        block_size=BLOCK_SIZE,
        max_model_len=MAX_LEN,
        max_num_seqs=MAX_ROWS,
        max_num_batched_tokens=MAX_TOKENS,
        max_prompt_rows=2,
        num_blocks=128,
    )
    prompts = [
        Bucket(rows, 16 * n, b) for rows in (1, 2) for n in (1, 2) for b in (0, 8)[: 3 - rows]
    ]
    decodes = [Bucket(rows, 1, blocks) for rows in (1, 4, 8) for blocks in (8, 24, 64)]
    return PhasedPlanner(BucketTable(prompts, decodes, limits), BLOCK_SIZE)


PLANNERS: dict[str, Callable[[], Planner]] = {
    "unified": lambda: UnifiedPlanner(BLOCK_SIZE),
    "phased": phased,
}


class Ran:
    """What a rank ran in a step."""

    def __init__(self, agreement: Lockstep, tokens: AgreedTokens, launches: list[Launch]) -> None:
        self.launches: list[Launch] = []
        self.counts: list[int] = []
        for launch in agreement.joined(launches):
            self.launches.append(launch)
            self.counts.append(tokens.count)
        assert tokens.count == 0
        self.is_idle = agreement.is_idle


def run_together(planner: Planner, plans: list[StepPlan], ranks_per_copy: int = 1) -> list[Ran]:
    """By rank."""

    def run(rank: InThread) -> Ran:
        tokens = AgreedTokens()
        agreement = Lockstep(planner, rank, ranks_per_copy, tokens)
        return Ran(agreement, tokens, list(planner.split(plans[rank.rank // ranks_per_copy])))

    return cast(list[Ran], on_ranks(len(plans) * ranks_per_copy, run))


def rows_of(launch: Launch) -> Iterator[tuple[int, int, int, int]]:
    """(row of the plan, slot, start, count)"""
    for i, row in enumerate(launch.plan_rows_np.tolist()):
        yield (
            row,
            int(launch.slots_np[i]),
            int(launch.starts_np[i]),
            int(launch.counts_np[i]),
        )


def rows_of_plan(plan: StepPlan) -> set[tuple[int, int, int, int]]:
    columns = (plan.slots.tolist(), plan.starts.tolist(), plan.counts.tolist())
    return set(zip(range(plan.num_rows), *columns, strict=True))


@pytest.mark.parametrize("name", PLANNERS)
@pytest.mark.parametrize("decodes", [False, True])
def test_every_copy_takes_part_in_every_launch_and_runs_its_rows_once(
    name: str, decodes: bool
) -> None:
    rng = random.Random(0)
    planner = PLANNERS[name]()
    for _ in range(25):
        plans = [step(rng, rng.randrange(MAX_ROWS + 1), decodes) for _ in range(3)]
        ran = run_together(planner, plans)
        assert len({len(each.launches) for each in ran}) == 1
        for each, plan in zip(ran, plans, strict=True):
            rows = [row for launch in each.launches for row in rows_of(launch)]
            assert len(rows) == len(set(rows)) and set(rows) == rows_of_plan(plan)
            assert each.is_idle == (not any(p.num_rows for p in plans))
        for counts, parts in zip(
            zip(*(each.counts for each in ran), strict=True),
            zip(*(each.launches for each in ran), strict=True),
            strict=True,
        ):
            assert set(counts) == {max(launch.num_tokens for launch in parts)}
            if name == "phased":  # one prepared shape for all
                assert len({launch.key for launch in parts}) == 1
            if all(launch.key.phase is Phase.DECODE for launch in parts):
                assert len({launch.key.rows for launch in parts}) == 1
            for launch in parts:  # dummy rows are of the dummy slot
                assert not launch.slots_np[len(launch.plan_rows_np) :].any()


def test_a_decode_step_beside_prompts_is_no_captured_one() -> None:
    """What is captured for its number of rows takes all copies to have as many tokens."""
    rng = random.Random(1)
    prompt = step(rng, 1, decodes=True)
    prompt.counts[0] = 9
    first, second = run_together(UnifiedPlanner(BLOCK_SIZE), [prompt, step(rng, 4, decodes=True)])
    assert first.launches[0].key.phase is Phase.MIXED is second.launches[0].key.phase
    assert first.counts == second.counts == [9]


def test_launches_that_no_prepared_shape_holds_together_go_one_after_the_other() -> None:
    rng = random.Random(2)
    planner = phased()
    wide, long = step(rng, 2, decodes=True), step(rng, 1, decodes=True)
    wide.counts[:], wide.starts[:] = 30, 0
    long.counts[:], long.starts[:] = 60, 0
    first, second = run_together(planner, [wide, long])
    assert [len(each.launches) for each in (first, second)] == [2, 2]
    for each in (first, second):
        for launch in each.launches:
            assert planner.buckets.is_prepared(
                Bucket(launch.key.rows, launch.key.query_len, launch.key.kv_blocks)
            )


def test_more_launches_than_the_first_exchange_has_room_for() -> None:
    rng = random.Random(3)
    many = step(rng, MAX_ROWS, decodes=True)
    many.counts[:], many.starts[:] = 5, 16  # each with context, hence a launch of its own
    none = step(rng, 0, decodes=True)
    first, second = run_together(phased(), [many, none])
    assert len(first.launches) == len(second.launches) == MAX_ROWS
    assert not any(len(launch.plan_rows_np) for launch in second.launches)


def test_ranks_of_a_copy_count_once() -> None:
    rng = random.Random(4)
    plans = [step(rng, 3, decodes=True), step(rng, 5, decodes=True)]
    for each in run_together(UnifiedPlanner(BLOCK_SIZE), plans, ranks_per_copy=2):
        assert [launch.num_rows for launch in each.launches] == [5]
