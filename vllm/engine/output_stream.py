"""OutputStream: from the loop that receives outputs to the task that waits for them."""

from __future__ import annotations

import asyncio

from vllm.errors import EngineDeadError
from vllm.outputs import RequestOutput


class OutputStream:
    """Outputs of one request on their way to its caller. Used on the event loop alone.

    Holds one output: what comes while the caller is busy is merged into it, so that a slow caller
    costs the others nothing.
    """

    __slots__ = ("_error", "_loop", "_output", "_waiter", "is_delta")

    def __init__(self, loop: asyncio.AbstractEventLoop, is_delta: bool) -> None:
        self.is_delta = is_delta
        self._loop = loop
        self._output: RequestOutput | None = None
        self._error: EngineDeadError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, output: RequestOutput) -> None:
        if self._output is not None and self.is_delta:
            self._output.extend(output)
        else:
            self._output = output
        self._wake()

    def fail(self, error: EngineDeadError) -> None:
        """The last thing to come, after an output that waits to be read."""
        self._error = error
        self._wake()

    async def next(self) -> RequestOutput:
        """Raises EngineDeadError."""
        while self._output is None:
            if self._error is not None:
                raise EngineDeadError(str(self._error)) from self._error
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        output, self._output = self._output, None
        return output

    def take(self) -> RequestOutput | None:
        """What waits to be read, if anything does."""
        output, self._output = self._output, None
        return output

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
