"""RequestStream: the outputs of one request, for callers that do not want a generator."""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import Self

from vllm.engine.front_end import raise_rejection
from vllm.engine.output_stream import OutputStream
from vllm.outputs import RequestOutput


class RequestStream:
    """Iterate over it, or ask for one output after the other; used by one task.

    Whoever loses interest before the last output closes it, which aborts the request.
    """

    def __init__(self, request_id: str, outputs: OutputStream, close: Callable[[], None]) -> None:
        self.request_id = request_id
        self.finished = False
        self._outputs = outputs
        self._close = close

    async def get(self) -> RequestOutput:
        """The next output, once there is one. Raises BadRequest, EngineDeadError."""
        try:
            return self._seen(await self._outputs.next())
        except BaseException:
            self.close()
            raise

    def get_nowait(self) -> RequestOutput | None:
        """The next output if there is one. Raises BadRequest."""
        output = self._outputs.take()
        return None if output is None else self._seen(output)

    def close(self) -> None:
        self.finished = True
        self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished:
            raise StopAsyncIteration
        return await self.get()

    def _seen(self, output: RequestOutput) -> RequestOutput:
        if output.finished:
            self.close()
        raise_rejection(output)
        return output
