"""Streams of a completions server, read with as little work as Python allows.

The client shares the cores with the server, so what it costs is taken from the engine. It counts
events and notes when they came; nothing is parsed but the count of tokens in the last one.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

STATUS = b"HTTP/1.1 200"
EVENT = b"data: {"
DONE = b"data: [DONE]"
# What of the last data may hold a part of EVENT, of DONE, or the count of tokens.
KEPT_BYTES = 512
NUM_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')


@dataclass(slots=True)
class Stream:
    """What one client saw; times in seconds."""

    first_s: float = 0.0  # after its request
    gaps_s: list[float] = field(default_factory=list)  # between pieces that brought events
    num_tokens: int = 0
    problem: str = ""


class _Reader(asyncio.Protocol):
    """Sends one request as soon as it is connected and reads the answer to its end."""

    def __init__(self, request: bytes, ended: asyncio.Future[Stream]) -> None:
        self.request = request
        self.ended = ended
        self.seen = Stream()
        self.kept = b""
        self.is_checked = False
        self.start_s = self.last_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.start_s = time.perf_counter()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        # An event may begin in one piece and end in the next.
        joined = self.kept[1 - len(EVENT) :] + data
        whole = self.kept + data
        self.kept = whole[-KEPT_BYTES:]
        if not self.is_checked and len(whole) >= len(STATUS):
            self.is_checked = True
            if not whole.startswith(STATUS):
                return self._end(whole[:300].decode(errors="replace"))
        if EVENT in joined:
            if self.seen.first_s:
                self.seen.gaps_s.append(now_s - self.last_s)
            else:
                self.seen.first_s = now_s - self.start_s
            self.last_s = now_s
        if DONE in self.kept:
            if counts := NUM_TOKENS.findall(self.kept):
                self.seen.num_tokens = int(counts[-1])
            self._end("")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection ended: {exc}")

    def _end(self, problem: str) -> None:
        if not self.ended.done():
            self.seen.problem = problem
            self.ended.set_result(self.seen)
            self.transport.close()


def request_of(prompt: Sequence[int], max_tokens: int, model: str, **fields: Any) -> bytes:
    """A completion of token ids, greedy and of exactly `max_tokens`, as a stream.

    `fields` are added to the body.
    """
    body = json.dumps(
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
    ).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def stream(port: int, request: bytes) -> Stream:
    """Send a request, and read its stream to the end."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Stream] = loop.create_future()
    await loop.create_connection(lambda: _Reader(request, ended), "127.0.0.1", port)
    return await ended


async def load(port: int, requests: Sequence[bytes], concurrency: int) -> list[Stream]:
    """Send all requests, `concurrency` at a time. The streams come in no certain order."""
    pending = iter(requests)
    streams: list[Stream] = []

    async def one_after_another() -> None:
        streams.extend([await stream(port, request) for request in pending])

    await asyncio.gather(*(one_after_another() for _ in range(concurrency)))
    return streams
