"""A small HTTP/1.1 client for load: one connection per request, server-sent events as they come.

General clients take longer per event than the engine takes per token, on the same cores.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

MAX_LINE_BYTES = 2**24
NO_HEADERS: Mapping[str, str] = {}


class ServerError(RuntimeError):
    """The server answered with an error status, or with an error event."""


@dataclass(frozen=True, slots=True)
class Server:
    host: str
    port: int
    tls: bool
    prefix: str
    api_key: str
    verify: bool = True  # the certificate

    @classmethod
    def at(cls, base_url: str, api_key: str = "", verify: bool = True) -> Server:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base_url!r} is not an http:// or https:// URL")
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        return cls(parts.hostname, port, tls, parts.path.rstrip("/"), api_key, verify)

    async def get(self, path: str) -> Any:
        return json.loads(b"".join([data async for data in self._exchange("GET", path, None)]))

    async def post(self, path: str, body: Any) -> Any:
        return json.loads(b"".join([data async for data in self._exchange("POST", path, body)]))

    async def order(self, path: str) -> None:
        """POST without body to a path that answers nothing. Raises ServerError."""
        async for _ in self._exchange("POST", path, None):
            pass

    async def stream(
        self, path: str, body: Any, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream, up to its [DONE]. Raises ServerError for an event that is one."""
        pending = b""
        async for data in self._exchange("POST", path, body, headers):
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if not line.startswith(b"data: "):
                    continue
                if line == b"data: [DONE]":
                    return
                yield _event(line[6:])
        raise ServerError("the stream ended without [DONE]")

    async def _exchange(
        self, method: str, path: str, body: Any, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncIterator[bytes]:
        """The body of the answer, in the pieces in which it was sent."""
        reader, writer = await asyncio.open_connection(
            self.host,
            self.port,
            ssl=_tls_context(self.verify) if self.tls else None,
            limit=MAX_LINE_BYTES,
        )
        try:
            writer.write(self._head_and_body(method, path, body, headers))
            status, answered = await _read_head(reader)
            pieces = _pieces(reader, answered)
            if status >= 400:
                text = b"".join([piece async for piece in pieces]).decode(errors="replace")
                raise ServerError(f"{method} {path}: status {status}: {text[:500]}")
            async for piece in pieces:
                yield piece
        finally:
            writer.close()

    def _head_and_body(
        self, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> bytes:
        data = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{method} {self.prefix}{path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Connection: close",
            f"Content-Length: {len(data)}",
        ]
        if data:
            lines.append("Content-Type: application/json")
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


@lru_cache
def _tls_context(verify: bool) -> ssl.SSLContext:
    """One for all connections: reading the certificates of the system takes milliseconds."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _event(data: bytes) -> dict[str, Any]:
    event = json.loads(data)
    if not isinstance(event, dict):
        raise ServerError(f"an event is no JSON object: {data[:200]!r}")
    if error := event.get("error"):
        raise ServerError(str(error.get("message") if isinstance(error, dict) else error))
    return event


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Raises ServerError for what is no HTTP."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.LimitOverrunError as error:
        raise ServerError(f"the head of the answer has no end: {error}") from None
    words = head[0].split(" ", 2)
    if not words[0].startswith("HTTP/") or len(words) < 2 or not words[1].isdecimal():
        raise ServerError(f"this is not the answer of an HTTP server: {head[0][:100]!r}")
    headers = {}
    for line in head[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(words[1]), headers


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int(await reader.readline(), 16):
            yield (await reader.readexactly(size + 2))[:size]
        return
    if "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
        return
    yield await reader.read()
