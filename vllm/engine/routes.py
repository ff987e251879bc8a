"""Which front end hears of what the engine core does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from vllm.core.kv_cache.journal import NetNews
from vllm.engine.intake import Intake
from vllm.logger import init_logger
from vllm.messages.engine import (
    Call,
    CallResult,
    EngineRequest,
    EngineStats,
    FinishReason,
    FromEngine,
    RequestUpdate,
    StepUpdates,
    ToEngine,
)

logger = init_logger(__name__)
# Between statistics for a front end that has no requests in the steps.
STATS_S: Final = 0.25


class Link(Protocol):
    """What is called of the core's end of the sockets."""

    @property
    def num_front_ends(self) -> int: ...
    def send(self, message: FromEngine, front_end: int) -> None: ...


class Routes(Protocol):
    def take(self, front_end: int, message: ToEngine) -> bool:
        """Note who sent a message; False if the core must not see it, which is answered then."""
        ...

    def send(self, step: StepUpdates) -> None:
        """Tell each front end of its requests."""
        ...


def make_routes(link: Link) -> Routes:
    return OneFrontEnd(link) if link.num_front_ends == 1 else ManyFrontEnds(link)


class OneFrontEnd:
    def __init__(self, link: Link) -> None:
        self.link = link
        self.intake = Intake(1)

    def take(self, front_end: int, message: ToEngine) -> bool:
        if isinstance(message, EngineRequest):
            self.intake.count(front_end)
            self.intake.begin(message)
        return True

    def send(self, step: StepUpdates) -> None:
        self.intake.settle(step.updates)
        step.stats.num_pending_tokens = self.intake.num_pending_tokens
        step.num_taken = self.intake.num_taken[0]
        self.link.send(step, 0)


class ManyFrontEnds:
    """Owns the table of requests and the front ends they came from."""

    def __init__(self, link: Link, clock: Callable[[], float] = time.monotonic) -> None:
        self.link = link
        self.clock = clock
        self.intake = Intake(link.num_front_ends)
        self.unsent_news = [NetNews() for _ in range(link.num_front_ends)]
        self.owners: dict[str, int] = {}
        self.slot_owners = np.zeros(64, np.int32)  # by slot of the core
        self.told_s = [float("-inf")] * link.num_front_ends
        self.is_told_idle = [True] * link.num_front_ends
        self.stats = EngineStats()

    def take(self, front_end: int, message: ToEngine) -> bool:
        if not isinstance(message, EngineRequest):
            return True
        self.intake.count(front_end)
        owner = self.owners.setdefault(message.request_id, front_end)
        if owner == front_end:
            self.intake.begin(message)
            return True
        # Front ends do not know each other's requests, and two cannot have one name.
        text = f"request id {message.request_id!r} is in use"
        answer = _failed(message.request_id, text, self.stats)
        answer.num_taken = self.intake.num_taken[front_end]
        self.link.send(answer, front_end)
        return False

    def send(self, step: StepUpdates) -> None:
        self.intake.settle(step.updates)
        step.stats.num_pending_tokens = self.intake.num_pending_tokens
        self.stats = step.stats
        shares: dict[int, list[RequestUpdate]] = {}
        for update in step.updates:
            if update.finish_reason is None:
                owner = self.owners[update.request_id]
            else:
                owner = self.owners.pop(update.request_id)
            shares.setdefault(owner, []).append(update)
            if update.slot:
                self._own_slot(update.slot, owner)
        of_slots = self.slot_owners[step.slots]
        now_s = self.clock()
        is_idle = step.stats.num_running == 0 and step.stats.num_waiting == 0
        for front_end in range(self.link.num_front_ends):
            share = shares.get(front_end)
            is_own = of_slots == front_end
            has_own = share is not None or bool(is_own.any())
            is_due = now_s - self.told_s[front_end] >= STATS_S
            unsent_news = self.unsent_news[front_end]
            if step.news is not None:
                unsent_news.note_all(step.news)
            if not has_own and not is_due and (not is_idle or self.is_told_idle[front_end]):
                continue
            self.told_s[front_end], self.is_told_idle[front_end] = now_s, is_idle
            own = StepUpdates(
                share or [],
                step.stats,
                step.time_s,
                step.slots[is_own],
                step.token_ids[is_own],
                step.core,
                self.intake.num_taken[front_end],
                unsent_news.take(),
            )
            self.link.send(own, front_end)

    def _own_slot(self, slot: int, owner: int) -> None:
        missing = slot + 1 - len(self.slot_owners)
        if missing > 0:
            self.slot_owners = np.pad(self.slot_owners, (0, max(missing, len(self.slot_owners))))
        self.slot_owners[slot] = owner


def refusal_of(data: memoryview, stats: EngineStats) -> FromEngine | None:
    """The answer to a message that does not decode, if it says at least what it belongs to."""
    try:
        fields: Any = msgspec.msgpack.decode(data)
        text = "the engine cannot read this request: one of its values has no place in a message"
        if fields["type"] == EngineRequest.__name__:
            return _failed(str(fields["request_id"]), text, stats)
        if fields["type"] == Call.__name__:
            return CallResult(int(fields["call_id"]), error=text)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        logger.error("Nor does it say what it belongs to: %s", error)
    return None


def _failed(request_id: str, text: str, stats: EngineStats) -> StepUpdates:
    update = RequestUpdate(request_id, [], finish_reason=FinishReason.ERROR, error=text)
    return StepUpdates([update], stats, time.monotonic())
