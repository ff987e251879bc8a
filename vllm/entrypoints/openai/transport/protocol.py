"""HTTP/1.1 of one connection, which a client cannot keep for ever by doing nothing."""

from __future__ import annotations

import asyncio
import sys
from http import HTTPStatus
from typing import Any

import h11
import msgspec
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from vllm.entrypoints.openai.transport.limits import error_body


def is_chunked_response(scope: Scope, start: Message) -> bool:
    """This message begins a response whose body goes out in chunks."""
    if start["type"] != "http.response.start" or scope["type"] != "http":
        return False
    if scope["http_version"] != "1.1" or scope["method"] == "HEAD":
        return False
    names = {name.lower() for name, _ in start.get("headers", ())}
    framings = {b"content-length", b"transfer-encoding"}
    return start["status"] >= 200 and start["status"] not in (204, 304) and not names & framings


def with_framed_bodies(protocol: H11Protocol, app: Any) -> Any:
    """`app` on this connection. Pieces of a response whose end is not known yet are framed here:
    taking each through h11 costs several times what making it does."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        is_chunked = False

        async def send_framed(message: Message) -> None:
            nonlocal is_chunked
            if not (is_chunked and message.get("more_body")):
                is_chunked = is_chunked_response(scope, message)
                await send(message)
                return
            if protocol.flow.write_paused:
                await protocol.flow.drain()
            body = message["body"]
            if body and not protocol.transport.is_closing():
                protocol.transport.write(b"%x\r\n%b\r\n" % (len(body), body))

        await app(scope, receive, send_framed)

    return run


def refusal(connection: h11.Connection, error: BaseException | None) -> bytes:
    """The answer to what is no HTTP, in the shape of the API."""
    status, reason = HTTPStatus.BAD_REQUEST, "it cannot be read"
    if isinstance(error, h11.RemoteProtocolError):
        # What comes after a colon is the client's own.
        status, reason = HTTPStatus(error.error_status_hint), str(error).partition(":")[0]
    body = msgspec.json.encode(error_body(status, f"the request is not valid HTTP: {reason}"))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    events = (
        h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()),
        h11.Data(data=body),
        h11.EndOfMessage(),
    )
    return b"".join(connection.send(event) or b"" for event in events)


def protocol_class(timeout_s: float) -> type[H11Protocol]:
    """A connection is closed when `timeout_s` pass without a whole head of a request, or while
    there is more to write than its buffer should hold and the client reads nothing of it.
    """

    class TimedProtocol(H11Protocol):
        def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            self.app = with_framed_bodies(self, self.app)
            self._head_timer: asyncio.TimerHandle | None = None
            self._write_timer: asyncio.TimerHandle | None = None

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has begun
                self.transport.write(refusal(self.conn, sys.exc_info()[1]))
            self.transport.close()

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._awaits_head():
                # Not anew for every byte: a slow client sends one now and then.
                if self._head_timer is None:
                    self._start_timer()
            else:
                self._stop_timer()

        def pause_writing(self) -> None:
            super().pause_writing()
            # Aborted, not closed: closing would wait for what is not read.
            self._write_timer = self.loop.call_later(timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._stop_write_timer()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            self._stop_write_timer()
            super().connection_lost(exc)

        def _awaits_head(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _start_timer(self) -> None:
            self._head_timer = self.loop.call_later(timeout_s, self._give_up)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _stop_write_timer(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

        def _give_up(self) -> None:
            self._head_timer = None
            if self._awaits_head() and not self.transport.is_closing():
                self.transport.close()

    return TimedProtocol
