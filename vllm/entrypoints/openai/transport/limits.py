"""What a request may weigh before it is read: its headers, its id, its body."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm.entrypoints.openai.errors import json_response
from vllm.entrypoints.openai.protocol.common import ErrorDetail, ErrorResponse
from vllm.entrypoints.openai.transport.options import TransportOptions

DISCARD_S: Final = 2.0
# It is repeated in answers, logs and traces: nothing that could break out of a line of them.
REQUEST_ID: Final = re.compile(r"[!-~]{1,256}")


class RequestLimits:
    """ASGI middleware: refuses in the shape of the API what exceeds a limit."""

    def __init__(self, app: ASGIApp, options: TransportOptions) -> None:
        self.app = app
        self.max_body_bytes = options.max_request_body_bytes
        self.max_headers = options.h11_max_header_count
        self.max_head_bytes = options.h11_max_incomplete_event_size
        self.timeout_s = options.client_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, self._counted(receive), send)
            return
        status, text = refusal
        await discard(receive)
        response = json_response(error_body(status, text), status, {"connection": "close"})
        await response(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[HTTPStatus, str] | None:
        headers = Headers(scope=scope)
        if len(scope["headers"]) > self.max_headers:
            return (
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"the request has {len(scope['headers'])} headers; this server takes "
                f"{self.max_headers} (--h11-max-header-count)",
            )
        num_bytes = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if num_bytes + len(scope["path"]) > self.max_head_bytes:
            # The parser counts only while a head is incomplete, and one may come whole.
            return (
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"the request's line and headers have more than {self.max_head_bytes} bytes "
                "(--h11-max-incomplete-event-size)",
            )
        request_id = headers.get("x-request-id")
        if request_id is not None and not REQUEST_ID.fullmatch(request_id):
            return (
                HTTPStatus.BAD_REQUEST,
                "the header X-Request-Id must be 1 to 256 printable ASCII characters, no spaces",
            )
        length = headers.get("content-length", "")
        if length.isascii() and length.isdecimal() and int(length[:20]) > self.max_body_bytes:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._too_large()
        return None

    def _counted(self, receive: Receive) -> Receive:
        num_bytes, is_complete = 0, False

        async def counted() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:  # what comes now is the client's going away
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self.timeout_s)
            except asyncio.TimeoutError:
                raise HTTPException(
                    HTTPStatus.REQUEST_TIMEOUT,
                    f"the request's body paused for more than {self.timeout_s} s "
                    "(--client-timeout)",
                    {"connection": "close"},
                ) from None
            num_bytes += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if num_bytes > self.max_body_bytes:
                if not is_complete:
                    await discard(receive)
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._too_large(), {"connection": "close"}
                )
            return message

        return counted

    def _too_large(self) -> str:
        return (
            f"the request's body has more than {self.max_body_bytes} bytes, the most this server "
            "takes (--max-request-body-bytes)"
        )


async def discard(receive: Receive) -> None:
    """Read on for a moment: closing a connection with unread data would take the answer along."""

    async def read() -> None:
        while (await receive()).get("more_body", False):
            pass

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), DISCARD_S)


def error_body(status: HTTPStatus, text: str) -> ErrorResponse:
    kind = {
        HTTPStatus.BAD_REQUEST: "BadRequestError",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "RequestEntityTooLargeError",
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "RequestHeadersTooLargeError",
    }.get(status) or f"{status.phrase.title().replace(' ', '')}Error"
    return ErrorResponse(ErrorDetail(text, kind, None, int(status)))
