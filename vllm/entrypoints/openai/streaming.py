"""From engine outputs to server-sent events, and what a client's going away does to them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vllm.entrypoints.openai.errors import ClientGone, error_of
from vllm.entrypoints.openai.protocol.common import PromptTokensDetails, Usage
from vllm.logger import init_logger
from vllm.outputs import RequestOutput

logger = init_logger(__name__)
T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
encoder = msgspec.json.Encoder()
_SOME_TEXT: Final = f"text {uuid.uuid4()}"  # nothing else says this


Chunk = msgspec.Struct | bytes  # or its event


class ChunkMaker(Protocol):
    """Turns the outputs of one HTTP request, in order, into the chunks of its stream."""

    def push(self, prompt_idx: int, output: RequestOutput) -> Sequence[Chunk]: ...

    def finish(self) -> Sequence[Chunk]:
        """What follows the last output."""
        ...


class UsageMeter:
    """Counts the tokens of one HTTP request, per prompt and choice."""

    def __init__(self, include_details: bool) -> None:
        self.include_details = include_details
        self.num_prompt_tokens: dict[int, int] = {}
        self.num_cached_tokens: dict[int, int] = {}
        self.num_output_tokens = 0

    def push(self, prompt_idx: int, output: RequestOutput) -> None:
        """`output` holds the tokens since the last one of this prompt."""
        if output.prompt_token_ids is not None:
            self.num_prompt_tokens[prompt_idx] = len(output.prompt_token_ids)
        if output.num_cached_tokens:
            self.num_cached_tokens[prompt_idx] = output.num_cached_tokens
        self.num_output_tokens += sum(len(choice.token_ids) for choice in output.outputs)

    def usage(self) -> Usage:
        prompt = sum(self.num_prompt_tokens.values())
        details = None
        if self.include_details:
            details = PromptTokensDetails(sum(self.num_cached_tokens.values()))
        return Usage(prompt, prompt + self.num_output_tokens, self.num_output_tokens, details)

    def usage_so_far(self, prompt_idx: int, num_output_tokens: int) -> Usage:
        """Of one sequence of one prompt, as `continuous_usage_stats` tells it in every chunk."""
        prompt = self.num_prompt_tokens.get(prompt_idx, 0)
        details = None
        if self.include_details:
            details = PromptTokensDetails(self.num_cached_tokens.get(prompt_idx, 0))
        return Usage(prompt, prompt + num_output_tokens, num_output_tokens, details)


async def events(
    outputs: AsyncGenerator[tuple[int, RequestOutput], None], chunks: ChunkMaker
) -> AsyncGenerator[bytes, None]:
    """The events of a stream, one item per engine output however many chunks it makes.

    Closing it closes `outputs`.
    """
    async with aclosing(outputs):
        async for prompt_idx, output in outputs:
            if made := chunks.push(prompt_idx, output):
                yield b"".join(map(event, made))
    yield b"".join(map(event, chunks.finish())) + DONE


def event(chunk: Chunk) -> bytes:
    return chunk if isinstance(chunk, bytes) else b"data: %b\n\n" % encoder.encode(chunk)


class EventTemplate:
    """The event of a chunk, to be made again with other texts: nearly all of a stream differ in
    nothing else."""

    def __init__(self, make: Callable[[str], msgspec.Struct]) -> None:
        """`make` puts a text into the chunk, once."""
        head, text, tail = event(make(_SOME_TEXT)).partition(encoder.encode(_SOME_TEXT))
        assert text and encoder.encode(_SOME_TEXT) not in tail, "the text is there once"
        self._head, self._tail = head, tail

    def event(self, text: str) -> bytes:
        return b"%b%b%b" % (self._head, encoder.encode(text), self._tail)


async def merged(
    streams: Sequence[AsyncGenerator[T, None]],
) -> AsyncGenerator[tuple[int, T], None]:
    """Items of all streams as they come, with the index of theirs. The first error ends them all.

    Closing the result closes the streams, which aborts their requests.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for first in only:
                yield 0, first
        return
    # Bounded: what a slow client does not fetch is merged further up instead of piling up here.
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue(len(streams))

    async def pump(index: int, stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    await queue.put((index, item))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(pump(i, stream)) for i, stream in enumerate(streams)]
    num_open = len(tasks)
    try:
        while num_open:
            item = await queue.get()
            if item is None:
                num_open -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_disconnect(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, cancelled with ClientGone when the client closes the connection first.

    The request's body must have been read.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for future in (task, watcher):
            future.cancel()
        # The engine must hear of the abort before the connection's task ends.
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response of server-sent events. Owns the generator and closes it, whatever happens."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.first = first
        self.rest = rest

    @classmethod
    async def open(cls, request: Request, stream: AsyncGenerator[bytes, None]) -> EventStream:
        """Wait for the first event: what is wrong with a request can then be its HTTP status."""
        try:
            return cls(await until_disconnect(request.receive, _next(stream)), stream)
        except BaseException:
            await stream.aclose()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientGone):
                await until_disconnect(receive, self._send_all(send))
        finally:
            await self.rest.aclose()

    async def _send_all(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        await send(_body(self.first))
        try:
            async for data in self.rest:
                await send(_body(data))
        except Exception as error:
            # The status is sent: only an event can tell the client.
            logger.exception("a stream ended with an error")
            await send(_body(event(error_of(error)) + DONE))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _body(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _next(stream: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(stream)
