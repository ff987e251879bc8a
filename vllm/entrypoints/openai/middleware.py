"""What wraps every route. Plain ASGI: a wrapper around responses would hide disconnects."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm.entrypoints.openai.errors import json_response
from vllm.entrypoints.openai.protocol.common import ErrorDetail, ErrorResponse, random_id

# What monitors and browsers must reach without a key; none of it shows or costs anything.
OPEN_PATHS = frozenset(
    {
        "/",
        "/ui/live",
        "/health",
        "/ping",
        "/version",
        "/metrics",
        "/docs",
        "/redoc",
        "/openapi.json",
    }
)


# Of a scope: who may read what its request leaves here.
OWNER: Final = "vllm.owner"


def owner_of(request: Request) -> str:
    """Those with the same key are one, and all are where no keys are asked for."""
    return str(request.scope.get(OWNER, ""))


class ApiKeyGuard:
    """Answers 401 unless the request bears one of the keys; any wrong one takes the same time.

    Tells the application which it was, by its digest.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self.digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._may_pass(scope):
            await self.app(scope, receive, send)
            return
        error = ErrorDetail(
            "a valid key is required: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            "AuthenticationError",
            None,
            401,
        )
        headers = {"www-authenticate": "Bearer"}
        await json_response(ErrorResponse(error), 401, headers)(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        # A proxy may or may not strip the path under which it shows the server.
        path = scope["path"]
        root = scope.get("root_path", "").rstrip("/")
        if path in OPEN_PATHS or (root and path.removeprefix(root) in OPEN_PATHS):
            return True
        given = _digest(_key_of(Headers(scope=scope)))
        scope[OWNER] = given.hex()
        matches = [secrets.compare_digest(given, digest) for digest in self.digests]
        return any(matches)


class RequestIdHeader:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id") or random_id()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


def _key_of(headers: Headers) -> str:
    """As clients of the OpenAI API send it, or those of Anthropic's."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    return headers.get("x-api-key", "")


def _digest(key: str) -> bytes:
    # Digests have one length, whatever was sent; comparing keys would tell theirs.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
