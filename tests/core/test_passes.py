"""Passes and limits of other features fit in beside those there are."""

from __future__ import annotations

import pytest

from tests.core.conftest import PIPELINES, Engine, expected
from vllm.core.request import Request
from vllm.core.step import Step

ITEM = 49  # a token in whose place something is computed that costs


class ItemBudget:
    """A row limit: a step computes one item, whichever request it belongs to."""

    def __init__(self) -> None:
        self.num_taken = 0
        self.taken_by_step: list[int] = []

    def begin_step(self) -> None:
        self.taken_by_step.append(self.num_taken)
        self.num_taken = 0

    def limit(self, request: Request, behind: int, step: Step) -> int | None:
        start = request.num_tokens - behind
        items = [i for i, t in enumerate(request.tokens.view(start).tolist()) if t == ITEM]
        room = 1 - self.num_taken
        return behind if len(items) <= room else items[room]

    def take(self, request: Request, behind: int, count: int) -> None:
        start = request.num_tokens - behind
        self.num_taken += request.tokens.view(start, start + count).tolist().count(ITEM)


class OneOfAKind:
    """A row limit: of requests that begin with the same token, only one may run."""

    def __init__(self, engine: Engine) -> None:
        self.running = engine.scheduler.lifecycle.running

    def begin_step(self) -> None:
        pass

    def limit(self, request: Request, behind: int, step: Step) -> int | None:
        first = request.tokens.view(0, 1)[0]
        others = [r for r in self.running if r is not request]
        return None if first in [r.tokens.view(0, 1)[0] for r in others] else behind

    def take(self, request: Request, behind: int, count: int) -> None:
        pass


@pytest.mark.parametrize(("depth", "num_stages"), PIPELINES)
def test_a_limit_cuts_prompts_before_what_has_no_room(depth: int, num_stages: int) -> None:
    engine = Engine(pipeline_depth=depth, num_stages=num_stages)
    budget = ItemBudget()
    engine.scheduler.limits.append(budget)
    prompts = [[i, 7, ITEM, 8, ITEM, ITEM, 9, 10, i] for i in range(3)]
    for i, prompt in enumerate(prompts):
        engine.add(str(i), prompt, max_tokens=6)
    engine.run()
    assert max(budget.taken_by_step) == 1 and sum(budget.taken_by_step) == 9
    for i, prompt in enumerate(prompts):
        assert engine.outputs[str(i)] == expected(prompt, 6)


def test_a_limit_can_have_requests_overtaken() -> None:
    engine = Engine()
    engine.scheduler.limits.append(OneOfAKind(engine))
    for name, prompt in (("a", [1, 2]), ("b", [1, 3]), ("c", [2, 2])):
        engine.add(name, prompt, max_tokens=3)
    engine.step()
    running = [request.id for request in engine.scheduler.lifecycle.running]
    assert running == ["a", "c"]
    engine.run()
    assert engine.outputs["b"] == expected([1, 3], 3)


def test_a_pass_sees_what_those_before_it_planned_and_may_take_the_rest() -> None:
    engine = Engine(max_num_batched_tokens=16)
    seen: list[tuple[int, int]] = []

    class Watch:
        def plan(self, step: Step) -> None:
            seen.append((len(step.rows) + len(step.steady.slots), step.tokens_left))

    engine.scheduler.passes.append(Watch())
    engine.add("a", [1] * 5, max_tokens=2)
    engine.add("b", [2] * 20, max_tokens=1)
    engine.run()
    assert seen[:2] == [(2, 0), (2, 16 - 1 - 9)]
