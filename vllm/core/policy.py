"""Scheduling policies: an order among requests, and the queue that keeps it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from vllm.core.request import Request, Status
from vllm.messages.engine import EngineRequest

# Requests are served in ascending order and preempted in descending order. `arrival` counts
# arrivals, so that orders are total and a preempted request returns to its old place.
Order = Callable[[EngineRequest, int], tuple[float, ...]]


def first_come_first_served(source: EngineRequest, arrival: int) -> tuple[float, ...]:
    return (arrival,)


def by_priority(source: EngineRequest, arrival: int) -> tuple[float, ...]:
    return (source.priority, arrival)


POLICIES: dict[str, Order] = {"fcfs": first_come_first_served, "priority": by_priority}


class WaitingQueue:
    """Requests that wait for a slot, in policy order. All operations are O(log n)."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, ...], Request]] = []
        self._num_gone = 0
        self.num_tokens = 0  # of all of them; a request that waits gets no more

    def __len__(self) -> int:
        return len(self._heap) - self._num_gone

    def __iter__(self) -> Iterator[Request]:
        """In no particular order."""
        return (request for _, request in self._heap if request.status is Status.WAITING)

    def push(self, request: Request) -> None:
        heapq.heappush(self._heap, (request.order, request))
        self.num_tokens += request.num_tokens

    def peek(self) -> Request | None:
        """The first request still waiting."""
        while self._heap:
            request = self._heap[0][1]
            if request.status is Status.WAITING:
                return request
            heapq.heappop(self._heap)
            self._num_gone -= 1
        return None

    def pop(self) -> Request:
        """Take out the request that `peek` shows."""
        request = self.peek()
        assert request is not None
        heapq.heappop(self._heap)
        self.num_tokens -= request.num_tokens
        return request

    def discard(self, request: Request) -> None:
        """A waiting request has changed its status: it is dropped when it comes to the front."""
        self._num_gone += 1
        self.num_tokens -= request.num_tokens
