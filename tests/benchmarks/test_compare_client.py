"""The client of benchmarks/compare: streams that come in pieces of any size."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from benchmarks.compare.client import Stream, load, request_of
from benchmarks.compare.serve import figures_of, percentile

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
EVENTS = [b'data: {"choices":[{"text":" w1"}]}\n\n'] * 3
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":3}}\n\n'
ANSWER = b"".join([HEAD, *EVENTS, USAGE, b"data: [DONE]\n\n"])


@asynccontextmanager
async def answering(pieces: Sequence[bytes]) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server on a port that sends these pieces to whoever asks, and what it was asked."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        asked.append(await reader.readexactly(length))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], asked


@pytest.mark.parametrize("size", [1, 7, 64, len(ANSWER)])
async def test_a_stream_ends_and_is_counted_however_it_is_cut(size: int) -> None:
    pieces = [ANSWER[at : at + size] for at in range(0, len(ANSWER), size)]
    async with answering(pieces) as (port, asked):
        [stream] = await load(port, [request_of([5, 6], 3, "model")], 1)
    assert (stream.problem, stream.num_tokens) == ("", 3)
    assert stream.first_s > 0
    assert json.loads(asked[0])["prompt"] == [5, 6]


async def test_every_event_is_seen_once_when_it_comes_alone() -> None:
    async with answering([HEAD, *EVENTS, USAGE, b"data: [DONE]\n\n"]) as (port, _):
        [stream] = await load(port, [request_of([5], 3, "model")], 1)
    assert len(stream.gaps_s) <= 3


async def test_an_event_cut_inside_its_name_is_one_event() -> None:
    pieces = [HEAD + b"da", b'ta: {"x":1}\n\n', b"data: [DONE]\n\n"]
    async with answering(pieces) as (port, _):
        [stream] = await load(port, [request_of([5], 1, "model")], 1)
    assert stream.first_s > 0
    assert stream.gaps_s == []


async def test_requests_wait_for_their_turn() -> None:
    requests = [request_of([number], 3, "model") for number in range(5)]
    async with answering([ANSWER]) as (port, asked):
        streams = await load(port, requests, 2)
    assert len(streams) == len(asked) == 5


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\nno such model", "no such model"),
        (HEAD + EVENTS[0], "connection ended"),
    ],
)
async def test_a_stream_that_fails_says_how(answer: bytes, told: str) -> None:
    async with answering([answer]) as (port, _):
        [stream] = await load(port, [request_of([5], 3, "model")], 1)
    assert told in stream.problem


def test_figures_of_streams() -> None:
    streams = [Stream(0.1, [0.01] * 63, 64), Stream(0.3, [0.03] * 63, 64)]
    figures = figures_of(streams, 2.0)
    assert figures["serve_tokens_per_s"] == 64
    assert figures["serve_ttft_p50_ms"] == pytest.approx(200)
    assert figures["serve_itl_p99_ms"] == pytest.approx(30)
    assert percentile(range(100), 0.99) == 99
