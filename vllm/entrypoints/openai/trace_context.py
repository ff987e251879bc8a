"""The W3C trace context of the HTTP request that is being served."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

NAMES = ("traceparent", "tracestate")
_current: ContextVar[Mapping[str, str] | None] = ContextVar("trace_headers", default=None)


def trace_headers() -> Mapping[str, str] | None:
    """Those of the current request: tasks that it starts see them too."""
    return _current.get()


class TraceContext:
    """Keeps the headers where `trace_headers` finds them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            found = {name: headers[name] for name in NAMES if name in headers}
            _current.set(found or None)
        await self.app(scope, receive, send)
