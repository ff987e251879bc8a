"""A message's deltas to the items of a response, and to the events that tell of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from vllm.entrypoints.openai.protocol.chat import TokenLogprob
from vllm.entrypoints.openai.protocol.common import now_s, random_id
from vllm.entrypoints.openai.protocol.response_events import (
    ArgumentsDelta,
    ArgumentsDone,
    Completed,
    Event,
    Failed,
    Incomplete,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    TextDelta,
    TextDone,
)
from vllm.entrypoints.openai.protocol.responses import (
    IncompleteDetails,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from vllm.parsers.deltas import ContentDelta, Delta, ReasoningDelta, ToolCallDelta


class OpenItem(Protocol):
    """The last item of the output, while it grows."""

    def begin(self) -> Iterator[Event]: ...

    def takes(self, delta: Delta) -> bool: ...

    def push(self, delta: Delta, logprobs: list[TokenLogprob]) -> Event: ...

    def end(self, status: str) -> Iterator[Event]: ...


class ResponseStream:
    """The items of one response: each is opened, filled and closed before the next.

    Owns `response` and keeps it current. Events refer to it: encode one before asking for the next.
    """

    def __init__(self, response: ResponseObject) -> None:
        self.response = response
        self.open: OpenItem | None = None
        self.logprobs: list[TokenLogprob] = []  # of tokens whose text is held back

    def push(self, deltas: Sequence[Delta], logprobs: Sequence[TokenLogprob]) -> Iterator[Event]:
        """`logprobs`: of the tokens these deltas came with; text alone shows them."""
        self.logprobs += logprobs
        for delta in deltas:
            if self.open is None or not self.open.takes(delta):
                if isinstance(delta, ContentDelta | ReasoningDelta) and not delta.text:
                    continue
                yield from self._close("completed")
                yield from self._begin(delta)
            assert self.open is not None
            if isinstance(delta, ToolCallDelta) and not delta.arguments:
                continue
            yield self.open.push(delta, self.logprobs)
            self.logprobs = []

    def finish(self, is_cut: bool, usage: ResponseUsage) -> Iterator[Event]:
        """`is_cut`: by the limit of its tokens."""
        if not self.response.output:
            yield from self._begin(ContentDelta(""))
        yield from self._close("incomplete" if is_cut else "completed")
        self.response.usage = usage
        if is_cut:
            self.response.status = "incomplete"
            self.response.incomplete_details = IncompleteDetails("max_output_tokens")
            yield Incomplete(response=self.response)
        else:
            self.response.status = "completed"
            self.response.completed_at = now_s()
            yield Completed(response=self.response)

    def fail(self, code: str, message: str) -> Iterator[Event]:
        yield from self._close("incomplete")
        self.response.status = "failed"
        self.response.error = ResponseError(code, message)
        yield Failed(response=self.response)

    def cancel(self) -> Iterator[Event]:
        """No event says so; the items are closed, so that what there is can be used."""
        yield from self._close("incomplete")
        self.response.status = "cancelled"

    def _begin(self, delta: Delta) -> Iterator[Event]:
        index = len(self.response.output)
        self.open = ITEMS[type(delta)](index, delta)
        self.response.output.append(self.open.item)  # type: ignore[attr-defined]
        yield from self.open.begin()

    def _close(self, status: str) -> Iterator[Event]:
        if self.open is not None:
            yield from self.open.end(status)
            self.open = None


class OpenMessage:
    def __init__(self, index: int, delta: Delta) -> None:
        self.index = index
        self.item = OutputMessage(f"msg_{random_id()}")
        self.part = OutputText()

    def begin(self) -> Iterator[Event]:
        yield ItemAdded(output_index=self.index, item=self.item)
        self.item.content.append(self.part)
        yield PartAdded(item_id=self.item.id, output_index=self.index, part=self.part)

    def takes(self, delta: Delta) -> bool:
        return isinstance(delta, ContentDelta)

    def push(self, delta: Delta, logprobs: list[TokenLogprob]) -> Event:
        assert isinstance(delta, ContentDelta), delta
        self.part.text += delta.text
        self.part.logprobs += logprobs
        return TextDelta(
            item_id=self.item.id, output_index=self.index, delta=delta.text, logprobs=logprobs
        )

    def end(self, status: str) -> Iterator[Event]:
        where = {"item_id": self.item.id, "output_index": self.index}
        yield TextDone(**where, text=self.part.text, logprobs=self.part.logprobs)  # type: ignore[arg-type]
        yield PartDone(**where, part=self.part)  # type: ignore[arg-type]
        self.item.status = status
        yield ItemDone(output_index=self.index, item=self.item)


class OpenReasoning:
    def __init__(self, index: int, delta: Delta) -> None:
        self.index = index
        self.item = OutputReasoning(f"rs_{random_id()}")
        self.part = ReasoningText()

    def begin(self) -> Iterator[Event]:
        yield ItemAdded(output_index=self.index, item=self.item)
        self.item.content.append(self.part)
        yield PartAdded(item_id=self.item.id, output_index=self.index, part=self.part)

    def takes(self, delta: Delta) -> bool:
        return isinstance(delta, ReasoningDelta)

    def push(self, delta: Delta, logprobs: list[TokenLogprob]) -> Event:
        assert isinstance(delta, ReasoningDelta), delta
        self.part.text += delta.text
        return ReasoningTextDelta(item_id=self.item.id, output_index=self.index, delta=delta.text)

    def end(self, status: str) -> Iterator[Event]:
        where = {"item_id": self.item.id, "output_index": self.index}
        yield ReasoningTextDone(**where, text=self.part.text)  # type: ignore[arg-type]
        yield PartDone(**where, part=self.part)  # type: ignore[arg-type]
        self.item.status = status
        yield ItemDone(output_index=self.index, item=self.item)


class OpenCall:
    def __init__(self, index: int, delta: Delta) -> None:
        assert isinstance(delta, ToolCallDelta) and delta.name is not None, delta
        self.index = index
        self.call_index = delta.index
        call_id = delta.id or f"call_{random_id()}"
        self.item = OutputFunctionCall(f"fc_{random_id()}", call_id, delta.name)

    def begin(self) -> Iterator[Event]:
        yield ItemAdded(output_index=self.index, item=self.item)

    def takes(self, delta: Delta) -> bool:
        return isinstance(delta, ToolCallDelta) and delta.index == self.call_index

    def push(self, delta: Delta, logprobs: list[TokenLogprob]) -> Event:
        assert isinstance(delta, ToolCallDelta), delta
        self.item.arguments += delta.arguments
        return ArgumentsDelta(item_id=self.item.id, output_index=self.index, delta=delta.arguments)

    def end(self, status: str) -> Iterator[Event]:
        yield ArgumentsDone(
            item_id=self.item.id,
            output_index=self.index,
            name=self.item.name,
            arguments=self.item.arguments,
        )
        self.item.status = status
        yield ItemDone(output_index=self.index, item=self.item)


ITEMS: dict[type[Delta], Callable[[int, Delta], OpenItem]] = {
    ContentDelta: OpenMessage,
    ReasoningDelta: OpenReasoning,
    ToolCallDelta: OpenCall,
}


def reasoning_text(output: Sequence[OutputItem]) -> str:
    return "".join(
        part.text for item in output if isinstance(item, OutputReasoning) for part in item.content
    )
