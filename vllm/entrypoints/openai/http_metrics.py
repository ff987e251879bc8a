"""Metrics of HTTP itself, under the names that instrumented FastAPI applications have."""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What monitors poll would drown what clients ask.
UNCOUNTED: Final = frozenset({"/metrics", "/health", "/ping", "/load", "/version", "/server_info"})
COARSE_S: Final = (0.1, 0.5, 1.0)
FINE_S: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0),
)


class HttpMetrics:
    """ASGI middleware; a stream counts when it ends. `handler` is a route's path, not the URL."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self.app = app
        self.requests = Counter(
            "http_requests",
            "Requests, by route, method and class of status",
            ("handler", "method", "status"),
            registry=registry,
        )
        self.request_bytes = Summary(
            "http_request_size_bytes", "Content-Length of requests", ("handler",), registry=registry
        )
        self.response_bytes = Summary(
            "http_response_size_bytes", "Bytes of bodies sent", ("handler",), registry=registry
        )
        self.seconds = Histogram(
            "http_request_duration_seconds",
            "Request to end of the answer, by route",
            ("handler", "method"),
            registry=registry,
            buckets=COARSE_S,
        )
        self.fine_seconds = Histogram(
            "http_request_duration_highr_seconds",
            "Request to end of the answer, of all routes",
            registry=registry,
            buckets=FINE_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNCOUNTED:
            await self.app(scope, receive, send)
            return
        started_s = time.perf_counter()
        status, sent_bytes = 500, 0  # unless there is an answer, which errors give further out

        async def counted(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            self._observe(scope, status, sent_bytes, time.perf_counter() - started_s)

    def _observe(self, scope: Scope, status: int, sent_bytes: int, seconds: float) -> None:
        # No route matched: the URL is the client's, and would make as many series as it likes.
        route = scope.get("route")
        handler = route.path if isinstance(route, Route) else "none"
        method = scope["method"] if handler != "none" else "none"
        self.requests.labels(handler, method, f"{status // 100}xx").inc()
        received = Headers(scope=scope).get("content-length", "")
        self.request_bytes.labels(handler).observe(int(received) if received.isdecimal() else 0)
        self.response_bytes.labels(handler).observe(sent_bytes)
        self.seconds.labels(handler, method).observe(seconds)
        self.fine_seconds.observe(seconds)
