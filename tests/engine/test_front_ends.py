"""Several front ends at one core: what is sent, routed, refused and answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from vllm.engine.addresses import Addresses, CoreAddress
from vllm.engine.core_process import CoreLink
from vllm.engine.front_link import FrontLink
from vllm.engine.routes import STATS_S, ManyFrontEnds
from vllm.messages.codec import encoder
from vllm.messages.engine import (
    Abort,
    Call,
    CallResult,
    EngineRequest,
    EngineStats,
    FinishReason,
    FromEngine,
    RequestUpdate,
    StepUpdates,
)
from vllm.sampling_params import SamplingParams


def request(request_id: str) -> EngineRequest:
    return EngineRequest(request_id, [1], SamplingParams(max_tokens=4), arrival_time_s=0.0)


class RecordedLink:
    def __init__(self, num_front_ends: int) -> None:
        self.num_front_ends = num_front_ends
        self.sent: list[tuple[int, FromEngine]] = []

    def send(self, message: FromEngine, front_end: int) -> None:
        self.sent.append((front_end, message))

    def take_sent(self) -> list[tuple[int, FromEngine]]:
        sent, self.sent = self.sent, []
        return sent


class Routed:
    def __init__(self, num_front_ends: int) -> None:
        self.now_s = 0.0
        self.link = RecordedLink(num_front_ends)
        self.routes = ManyFrontEnds(self.link, clock=lambda: self.now_s)

    def step(self, *updates: RequestUpdate, num_running: int = 1) -> dict[int, list[str]]:
        """Ids of the requests that each front end hears of."""
        self.routes.send(StepUpdates(list(updates), EngineStats(num_running=num_running), 0.0))
        return {
            front_end: [update.request_id for update in message.updates]
            for front_end, message in self.link.take_sent()
            if isinstance(message, StepUpdates)
        }


def test_updates_go_to_the_front_end_that_asked() -> None:
    routed = Routed(3)
    assert routed.routes.take(1, request("a"))
    assert routed.routes.take(2, request("b"))
    routed.step(RequestUpdate("a", [5]))
    assert routed.step(RequestUpdate("b", [7]), RequestUpdate("a", [6])) == {1: ["a"], 2: ["b"]}
    last = RequestUpdate("a", [8], finish_reason=FinishReason.STOP)
    assert routed.step(last) == {1: ["a"]}
    assert routed.routes.take(2, request("a"))  # a name that is free again
    assert routed.step(RequestUpdate("a", [5])) == {2: ["a"]}


def test_a_name_that_another_front_end_uses_is_refused_and_its_request_goes_on() -> None:
    routed = Routed(2)
    routed.routes.take(0, request("a"))
    assert not routed.routes.take(1, request("a"))
    ((front_end, answer),) = routed.link.take_sent()
    assert front_end == 1
    assert isinstance(answer, StepUpdates)
    assert answer.updates[0].finish_reason is FinishReason.ERROR
    assert "in use" in (answer.updates[0].error or "")
    assert routed.step(RequestUpdate("a", [5]))[0] == ["a"]


def test_front_ends_without_requests_hear_statistics_now_and_then_and_of_idleness() -> None:
    routed = Routed(2)
    routed.routes.take(0, request("a"))
    assert routed.step(RequestUpdate("a", [5])) == {0: ["a"], 1: []}
    assert routed.step(RequestUpdate("a", [6])) == {0: ["a"]}
    routed.now_s += STATS_S
    assert routed.step(RequestUpdate("a", [7])) == {0: ["a"], 1: []}
    last = RequestUpdate("a", [8], finish_reason=FinishReason.LENGTH)
    assert routed.step(last, num_running=0) == {0: ["a"], 1: []}


class Wires:
    """A core's end and two front ends' ends, in one process."""

    def __init__(self, directory: Path) -> None:
        addresses = Addresses.of(str(directory), 2)
        address = CoreAddress(str(directory))
        self.core = CoreLink(addresses, address)
        self.front_ends = [FrontLink(addresses, index) for index in range(2)]
        for front_end in self.front_ends:
            front_end.connect(address)

    def received(self, count: int) -> list[tuple[int, object]]:
        """By the core."""
        messages: list[tuple[int, object]] = []
        while len(messages) < count:
            self.core.wait(on_idle=lambda: pytest.fail("nothing came"))
            messages += self.core.receive()
        return messages


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[Wires]:
    wires = Wires(tmp_path)
    yield wires
    for front_end in wires.front_ends:
        front_end.close()
    wires.core.close()


def test_messages_bear_their_front_end_and_answers_reach_it(wires: Wires) -> None:
    wires.front_ends[1].send(Abort(["a"]))
    assert wires.received(1) == [(1, Abort(["a"]))]
    wires.core.send(CallResult(1, "for 0"), 0)
    wires.core.send(CallResult(2, "for 1"), 1)
    assert wires.front_ends[0].receive().message == CallResult(1, "for 0")
    assert wires.front_ends[1].receive().message == CallResult(2, "for 1")


def test_a_request_that_does_not_decode_is_answered_with_an_error(wires: Wires) -> None:
    wires.core.send(StepUpdates([], EngineStats(num_steps=9), 0.0), 1)
    assert isinstance(wires.front_ends[1].receive().message, StepUpdates)
    fields = msgspec.to_builtins(request("broken"))
    fields["prompt_token_ids"] = "no list"
    outbox = wires.front_ends[1]._outboxes[0]
    outbox.send(b"\x01" + encoder().encode(fields))
    outbox.send(b"\x01\xc1")  # says nothing at all
    outbox.send(b"")
    outbox.send(b"\x07" + encoder().encode(Abort(["a"])))  # of no front end
    outbox.send(b"\x01" + encoder().encode({"type": "Call", "call_id": 3, "method": 5}))
    wires.front_ends[1].send(Abort(["b"]))
    assert wires.received(1) == [(1, Abort(["b"]))]
    answer = wires.front_ends[1].receive().message
    assert isinstance(answer, StepUpdates)
    assert answer.updates[0].request_id == "broken"
    assert answer.updates[0].finish_reason is FinishReason.ERROR
    assert answer.stats.num_steps == 9  # counters of monitors must not fall
    result = wires.front_ends[1].receive().message
    assert isinstance(result, CallResult)
    assert result.call_id == 3 and result.error


def test_a_prompt_of_another_process_is_not_pickled(wires: Wires) -> None:
    wires.front_ends[0]._outboxes[0].send(b"\x00\x80\x04N.")  # a pickle of None
    wires.front_ends[0].send(Call(1, "echo"))
    assert wires.received(1) == [(0, Call(1, "echo"))]
