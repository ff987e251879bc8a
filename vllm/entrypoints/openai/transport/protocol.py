"""HTTP/1.1 of one connection, which a client cannot keep for ever by doing nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol_class(timeout_s: float) -> type[H11Protocol]:
    """A connection is closed when `timeout_s` pass without a whole head of a request, or while
    there is more to write than its buffer should hold and the client reads nothing of it.
    """

    class TimedProtocol(H11Protocol):
        def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            self._head_timer: asyncio.TimerHandle | None = None
            self._write_timer: asyncio.TimerHandle | None = None

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
