"""The HTTP server on a real socket, in the loop of a test, with any engine behind it."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.entrypoints.openai.fakes import FakeEngine
from tests.limits import HANG_S
from vllm.entrypoints.openai.serving.context import ServingContext
from vllm.entrypoints.openai.transport.listener import Listener
from vllm.entrypoints.openai.transport.server import HttpServer
from vllm.entrypoints.openai.transport.tls import Tls, tls_of
from vllm.errors import EngineDeadError


@dataclass
class Fate:
    """Of the engine: dies when told to."""

    engine: FakeEngine
    death: asyncio.Event = field(default_factory=asyncio.Event)
    num_aborts: int = 0

    async def died(self) -> EngineDeadError:
        await self.death.wait()
        return EngineDeadError("the engine core is gone")

    async def abort_all(self) -> None:
        self.num_aborts += 1


@dataclass
class Served:
    server: HttpServer
    listener: Listener
    context: ServingContext
    fate: Fate
    tls: Tls | None
    task: asyncio.Task[None]

    @property
    def url(self) -> str:
        return self.listener.url

    def client(self, **kwargs: Any) -> httpx.AsyncClient:
        if self.listener.options.uds:
            kwargs["transport"] = httpx.AsyncHTTPTransport(uds=self.listener.options.uds)
        return httpx.AsyncClient(base_url=self.url, timeout=HANG_S, **kwargs)

    async def connect(self, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.listener.socket.getsockname()[:2]
        return await asyncio.open_connection(host, port, **kwargs)


@asynccontextmanager
async def listening(make_app: Callable[..., Any], **options: Any) -> AsyncIterator[Served]:
    app = make_app(**{"host": "127.0.0.1", "port": 0, **options})
    context = app.state.server.context
    tls = tls_of(context.options)
    listener = Listener(context.options, tls is not None)
    fate = Fate(context.engine)
    server = HttpServer(context.options, app, fate, context.admission, tls)
    started = asyncio.Event()
    server.on_started = started.set
    task = asyncio.create_task(server.run_until_told(listener.socket))
    try:
        await asyncio.wait_for(started.wait(), HANG_S)
        yield Served(server, listener, context, fate, tls, task)
    finally:
        server.config.timeout_graceful_shutdown = 1
        server.should_exit = True
        await asyncio.wait({task}, timeout=HANG_S)
        listener.close()


class Authority:
    """Signs certificates for localhost, with the openssl program."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self.directory = directory
        self.key, self.certificate = directory / f"{name}.key", directory / f"{name}.pem"
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", self.key, "-out", self.certificate, "-days", "2", "-subj", f"/CN={name}"),
        )

    def issue(self, name: str) -> tuple[str, str]:
        """Paths of a certificate and its key; an earlier one of this name is replaced."""
        key, request = self.directory / f"{name}.key", self.directory / f"{name}.csr"
        certificate = self.directory / f"{name}.crt"
        extension = self.directory / "san.cnf"
        extension.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", key, "-out", request, "-subj", f"/CN={name}"),
        )
        self._openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key),
            *("-CAcreateserial", "-out", certificate, "-days", "2", "-extfile", extension),
        )
        return str(certificate), str(key)

    def trusting(self, *own: str) -> ssl.SSLContext:
        """A client that trusts this authority, and shows its `own` certificate and key."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        if own:
            context.load_cert_chain(*own)
        return context

    @staticmethod
    def _openssl(*words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
