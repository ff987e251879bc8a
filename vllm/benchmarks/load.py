"""Sends requests when they are due, and notes what their clients see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from vllm.benchmarks.backends import Backend
from vllm.utils.http_client import Server, ServerError


@dataclass(slots=True)
class Answer:
    """What one client saw. Owned by the task of its request until that ends; times in seconds."""

    start_s: float  # after the start of the run
    first_token_s: float = 0.0  # after its own start
    between_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    text: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def per_output_token_s(self) -> float:
        return (self.total_s - self.first_token_s) / max(self.num_output_tokens - 1, 1)

    def token_times_s(self) -> list[float]:
        """When its events came, after the start of the run."""
        moment = self.start_s + self.first_token_s
        times = [moment]
        for gap in self.between_s:
            moment += gap
            times.append(moment)
        return times


@dataclass(frozen=True, slots=True)
class Request:
    body: dict[str, Any]
    num_prompt_tokens: int  # as counted here; the server's count wins
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Sender:
    server: Server
    backend: Backend
    path: str
    max_concurrency: int  # 0: no limit
    clock: Callable[[], float] = time.perf_counter

    async def send(
        self, requests: Sequence[Request], times_s: Sequence[float], done: Callable[[], object]
    ) -> AsyncIterator[Answer]:
        """Answers in the order of `requests`; each request starts no earlier than its time."""
        limit = asyncio.Semaphore(self.max_concurrency) if self.max_concurrency else nullcontext()
        start_s = self.clock()
        tasks = []

        async def one(request: Request) -> Answer:
            async with limit:
                answer = await self.ask(request, start_s)
            done()
            return answer

        try:
            for request, due_s in zip(requests, times_s, strict=True):
                # Against the schedule, not the last start: a late start must not delay the rest.
                await asyncio.sleep(max(0.0, start_s + due_s - self.clock()))
                tasks.append(asyncio.create_task(one(request)))
            for task in tasks:
                yield await task
        finally:
            for task in tasks:
                task.cancel()

    async def ask(self, request: Request, run_start_s: float) -> Answer:
        start_s = last_s = self.clock()
        answer = Answer(start_s - run_start_s, num_prompt_tokens=request.num_prompt_tokens)
        usage: dict[str, Any] = {}
        try:
            async for event in self.server.stream(self.path, request.body, request.headers):
                now_s = self.clock()
                usage = event.get("usage") or usage
                choices = event.get("choices")
                said = self.backend.text(choices[0]) if choices else None
                if said is None:
                    continue
                if answer.first_token_s:
                    answer.between_s.append(now_s - last_s)
                else:
                    answer.first_token_s = now_s - start_s
                answer.text.append(said)
                last_s = now_s
            if not answer.first_token_s:
                answer.error = "the stream ended without a token"
        except (OSError, EOFError, ValueError, ServerError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.total_s = last_s - start_s
        answer.num_prompt_tokens = usage.get("prompt_tokens", answer.num_prompt_tokens)
        # A server that counts nothing is taken to send a token per event.
        answer.num_output_tokens = usage.get("completion_tokens", len(answer.text))
        return answer
