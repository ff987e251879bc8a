"""Cores that step together submit the same steps, whenever work and words reach them."""

from __future__ import annotations

import random
from collections import deque

import numpy as np
import pytest

from vllm.engine.wave import NoWaves, Waves
from vllm.messages.step import StepResult

NO_TOKENS = np.empty(0, np.int32)


class Core:
    """As EngineCore steps: fills the pipeline, and then waits for its oldest step."""

    def __init__(self, group: Group, number: int) -> None:
        self.group, self.number = group, number
        self.waves = Waves(lambda wave: group.tell(number, wave))
        self.inbox: deque[int] = deque()
        self.work = 0  # launches still to come
        self.submitted: list[bool] = []  # by step: whether there was something to launch
        self.inflight: deque[int] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self.inflight or self.work or self.waves.is_on)

    def turn(self) -> bool:
        """Do what can be done now; whether that was anything."""
        result = self.group.result(self.inflight[0]) if self.inflight else None
        if self.inflight and result is None:
            return False  # waits for the others, and hears nothing
        if result is not None:
            self.inflight.popleft()
            self.waves.note(result, len(self.inflight))
        while self.inbox:
            self.waves.enter(self.inbox.popleft())
        begun = len(self.submitted)
        while self.has_work and len(self.inflight) < self.group.depth and self.waves.admits:
            if self.work:
                self.work -= 1
                self.waves.begin()
                self.submit(True)
            elif self.waves.is_on:
                self.submit(False)
            else:
                break
        return result is not None or len(self.submitted) > begun

    def submit(self, has_launch: bool) -> None:
        self.inflight.append(len(self.submitted))
        self.submitted.append(has_launch)


class Group:
    def __init__(self, size: int, depth: int, rng: random.Random) -> None:
        self.depth, self.rng = depth, rng
        self.on_the_way: list[tuple[int, int]] = []  # receiver, wave
        self.cores = [Core(self, number) for number in range(size)]

    def tell(self, sender: int, wave: int) -> None:
        self.on_the_way += [(core.number, wave) for core in self.cores if core.number != sender]

    def result(self, step: int) -> StepResult | None:
        if any(len(core.submitted) <= step for core in self.cores):
            return None
        is_idle = not any(core.submitted[step] for core in self.cores)
        return StepResult(step, NO_TOKENS, is_idle=is_idle)

    def deliver(self) -> None:
        """Any message, for those of different senders have no order."""
        receiver, wave = self.on_the_way.pop(self.rng.randrange(len(self.on_the_way)))
        self.cores[receiver].inbox.append(wave)

    def run(self, amounts: list[int]) -> None:
        """Give work of these sizes to cores at any time, until nothing is left to do."""
        while True:
            doings = [core.turn for core in self.cores]
            if self.on_the_way:
                doings.append(self.deliver)
            if amounts:
                doings.append(lambda: self.give(amounts.pop()))
            self.rng.shuffle(doings)
            for doing in doings:
                if doing() is not False:
                    break
            else:
                return

    def give(self, amount: int) -> None:
        self.rng.choice(self.cores).work += amount


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [2, 3])
def test_cores_submit_the_same_steps_and_end_together(size: int, depth: int) -> None:
    rng = random.Random(size * 10 + depth)
    num_idle = num_waves = 0
    for _ in range(300):
        group = Group(size, depth, rng)
        amounts = [rng.randrange(1, 6) for _ in range(rng.randrange(1, 8))]
        asked = sum(amounts)
        group.run(amounts)
        steps = [core.submitted for core in group.cores]
        assert len({len(some) for some in steps}) == 1
        assert sum(sum(some) for some in steps) == asked
        assert not any(core.has_work or core.inbox for core in group.cores)
        assert len({core.waves.number for core in group.cores}) == 1
        num_idle += sum(not any(row) for row in zip(*steps, strict=True))
        num_waves += group.cores[0].waves.number
    assert num_waves > 300 and num_idle >= num_waves * depth  # a wave ends with idle steps


def test_a_word_of_a_wave_that_is_over_begins_nothing() -> None:
    told: list[int] = []
    waves = Waves(told.append)
    waves.begin()
    waves.begin()
    assert told == [1] and waves.is_on
    waves.enter(1)
    waves.note(StepResult(1, NO_TOKENS, is_idle=True), num_inflight=0)
    assert not waves.is_on and waves.admits
    waves.enter(1)
    assert not waves.is_on
    waves.enter(2)
    assert waves.is_on and told == [1]


def test_a_core_alone_submits_as_it_pleases() -> None:
    alone = NoWaves()
    alone.begin()
    alone.note(StepResult(1, NO_TOKENS), num_inflight=3)
    assert alone.admits and not alone.is_on
