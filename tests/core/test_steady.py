"""Steady rows are planned and committed together, as they would be one by one."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.core.conftest import BLOCK, Engine, expected, layout
from vllm.core.steady import RECENT_TOKENS
from vllm.messages.step import StepPlan

NEVER = 1000  # rows from which on requests may be steady


def rows_of(plan: StepPlan, holders: dict[int, str]) -> list[tuple[Any, ...]]:
    """Of each row its request and what is computed; `holders` are kept up to date."""
    holders.update({admission.slot: admission.request_id for admission in plan.admissions})
    names = [holders[slot] for slot in plan.slots.tolist()]
    columns = (plan.starts, plan.counts, plan.samples)
    return sorted(zip(names, *(column.tolist() for column in columns), strict=True))


def trace(seed: int, least_steady_rows: int, **changes: Any) -> tuple[list[Any], Engine]:
    """What every step of some traffic plans and tells, in no order within the step."""
    draw = random.Random(seed)
    engine = Engine(least_steady_rows=least_steady_rows, **changes)
    found: list[Any] = []
    holders: dict[int, str] = {}
    for step in range(120):
        if step < 60 and draw.random() < 0.4:
            prompt = [draw.randrange(50) for _ in range(draw.choice([1, 3, 4, 9, 21]))]
            engine.add(
                f"r{step}",
                prompt,
                priority=draw.randrange(3),
                max_tokens=draw.choice([1, 2, 7, 30]),
                stop_token_ids=draw.sample(range(50), draw.choice([0, 0, 2])),
                min_tokens=draw.choice([0, 0, 1]),
            )
        if draw.random() < 0.05 and engine.scheduler.lifecycle.by_id:
            engine.scheduler.abort(draw.choice(sorted(engine.scheduler.lifecycle.by_id)))
        if not (engine.scheduler.has_work or engine.inflight):
            continue
        num_plans = len(engine.plans)
        updates = engine.step()
        told = sorted((u.request_id, u.token_ids, str(u.finish_reason)) for u in updates)
        planned = [(rows_of(p, holders), len(p.releases)) for p in engine.plans[num_plans:]]
        found.append((told, planned))
    engine.run()
    return found, engine


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"enable_prefix_caching": False},
        {"policy": "priority", "max_num_batched_tokens": 9},
        {"kv": layout(num_blocks=20), "max_model_len": 60},
        {"kv": layout(num_blocks=40, window=6, hybrid=True)},
        {"max_num_seqs": 4, "long_prefill_token_threshold": 5},
    ],
    ids=["roomy", "uncached", "priority", "short of blocks", "windows", "long prompts"],
)
def test_steps_do_not_depend_on_whether_rows_are_handled_together(
    changes: dict[str, Any], depth: int
) -> None:
    for seed in range(2):
        together, engine = trace(seed, 0, pipeline_depth=depth, **changes)
        one_by_one, other = trace(seed, NEVER, pipeline_depth=depth, **changes)
        assert engine.num_steady > 20 and other.num_steady == 0
        for step, (some, others) in enumerate(zip(together, one_by_one, strict=True)):
            assert some == others, step
        assert engine.outputs == other.outputs
        assert engine.scheduler.lifecycle.stats.num_generation_tokens == (
            other.scheduler.lifecycle.stats.num_generation_tokens
        )
        assert (
            engine.scheduler.lifecycle.stats.num_preemptions
            == other.scheduler.lifecycle.stats.num_preemptions
        )


@pytest.mark.parametrize("caching", [True, False])
def test_more_tokens_than_are_kept_as_recent_reach_the_request(caching: bool) -> None:
    count = 2 * RECENT_TOKENS + 3
    engine = Engine(layout(num_blocks=80), enable_prefix_caching=caching, max_model_len=300)
    engine.add("a", [1, 2, 3], max_tokens=count)
    for _ in range(count - 1):
        engine.step()
    request = engine.scheduler.lifecycle.by_id["a"]
    engine.scheduler.lifecycle.steady.leave(request)
    assert request.tokens.view(3).tolist() == expected([1, 2, 3], count - 1)
    engine.run()
    assert engine.outputs["a"] == expected([1, 2, 3], count)


def test_what_steady_rows_fill_is_found_by_later_prompts() -> None:
    engine = Engine()
    engine.add("a", [1, 2, 3], max_tokens=4 * BLOCK)
    engine.run()
    known = [1, 2, 3, *engine.outputs["a"]]
    engine.add("b", known[: 3 * BLOCK + 1], max_tokens=1)
    engine.run()
    assert engine.scheduler.lifecycle.stats.prefix_hits == 3 * BLOCK


def test_few_rows_are_not_worth_it() -> None:
    engine = Engine(least_steady_rows=4)
    for i in range(4):
        engine.add(str(i), [i + 1], max_tokens=10 if i < 3 else 30)
    for _ in range(6):
        engine.step()
    assert len(engine.scheduler.lifecycle.steady) == 4
    for _ in range(10):
        engine.step()
    assert len(engine.scheduler.lifecycle.running) == 1 and not len(
        engine.scheduler.lifecycle.steady
    )
    engine.run()
    assert [len(engine.outputs[str(i)]) for i in range(4)] == [10, 10, 10, 30]
