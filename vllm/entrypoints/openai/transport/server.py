"""The HTTP server of one process: how it says that it is up, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, Protocol

import uvicorn

from vllm import envs
from vllm.entrypoints.openai.admission import Admission
from vllm.entrypoints.openai.transport.logs import access_log_config, without_queries
from vllm.entrypoints.openai.transport.options import TransportOptions
from vllm.entrypoints.openai.transport.protocol import protocol_class
from vllm.entrypoints.openai.transport.tls import Tls
from vllm.entrypoints.stop_signals import SIGNALS, stop_signals
from vllm.errors import EngineDeadError
from vllm.logger import init_logger

logger = init_logger(__name__)
POLL_S: Final = 0.05  # between looks at what is still open
# For answers on their way, once their requests have ended.
LAST_ANSWERS_S: Final = 1.0
ENGINE_DEATH_S: Final = 5.0


def run_in_loop(main: Coroutine[Any, Any, None]) -> None:
    """In the faster event loop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


class ServedEngine(Protocol):
    async def died(self) -> EngineDeadError: ...
    async def abort_all(self) -> None: ...


class HttpServer(uvicorn.Server):
    """Serves until told to end by a signal or by the engine's death.

    The first signal drains: new requests are refused, open ones have --shutdown-timeout. The second
    ends at once.
    """

    def __init__(
        self,
        options: TransportOptions,
        app: Any,
        engine: ServedEngine,
        admission: Admission,
        tls: Tls | None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol_class(options.client_timeout),
                ws="none",
                log_config=access_log_config(options),
                log_level=options.uvicorn_log_level,
                access_log=not options.disable_uvicorn_access_log,
                timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
                h11_max_incomplete_event_size=options.h11_max_incomplete_event_size,
                # The application mounts at the root and only tells its clients where it is shown.
                root_path="",
            )
        )
        without_queries()
        self.options = options
        self.engine = engine
        self.admission = admission
        self.tls = tls
        self.signals: Sequence[signal.Signals] = SIGNALS
        self.on_started: Callable[[], None] = lambda: None
        self.engine_error: EngineDeadError | None = None
        self._num_signals = 0
        self._drain: asyncio.Task[None] | None = None

    async def run_until_told(self, listener: socket.socket) -> None:
        """Raises EngineDeadError if that is why it ended."""
        self.config.load()
        if self.tls is not None:
            self.config.ssl = self.tls.context
        watcher = asyncio.create_task(self._watch_engine())
        refreshing = contextlib.nullcontext() if self.tls is None else self.tls.refreshing()
        try:
            async with refreshing:
                await self.serve(sockets=[listener])
        finally:
            watcher.cancel()
        if self.engine_error is not None:
            raise self.engine_error

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def tell() -> None:
            loop.call_soon_threadsafe(self._on_signal)

        with stop_signals.taken(self.signals, tell):
            yield

    def _on_signal(self) -> None:
        self._num_signals += 1
        if self._num_signals == 1:
            logger.info("Ending: open requests have %d s", self.options.shutdown_timeout)
            self._start_drain(self.options.shutdown_timeout)
        else:
            self._end(patience_s=0.0)

    def _start_drain(self, limit_s: float) -> None:
        if self._drain is None:
            self._drain = asyncio.create_task(self._end_after(limit_s))

    async def _end_after(self, limit_s: float) -> None:
        """Refuse what is new; abort what is open after `limit_s`."""
        self.admission.close()
        if not await self._is_idle(limit_s):
            logger.warning(
                "%d requests are still open after %g s: aborting them",
                len(self.server_state.tasks),
                limit_s,
            )
            with contextlib.suppress(EngineDeadError):
                await self.engine.abort_all()
            await self._is_idle(LAST_ANSWERS_S)
        self._end(patience_s=LAST_ANSWERS_S)

    async def _is_idle(self, limit_s: float) -> bool:
        """Wait so long for requests to end."""
        until_s = time.monotonic() + limit_s
        while self.server_state.tasks or self.admission.tallies.requests.own():
            if time.monotonic() >= until_s:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def _end(self, patience_s: float) -> None:
        # It would write a traceback for every request that is cancelled after its patience.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.config.timeout_graceful_shutdown = patience_s  # type: ignore[assignment]
        self.should_exit = True

    async def _watch_engine(self) -> None:
        error = await self.engine.died()
        if envs.VLLM_KEEP_ALIVE_ON_ENGINE_DEATH:
            logger.error("Every request is answered 503 from here on")
            return
        self.engine_error = error
        self._start_drain(ENGINE_DEATH_S)
