"""Responses that were made here, for as long as there is room."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from vllm.entrypoints.openai.admission import Overloaded
from vllm.entrypoints.openai.errors import NotFound
from vllm.entrypoints.openai.protocol.responses import ResponseObject
from vllm.entrypoints.openai.serving.response_input import Message
from vllm.errors import BadRequest

MAX_RESPONSES = 1000
MAX_BYTES = 256 << 20
MAX_RUNNING = 256


@dataclass(slots=True)
class StoredResponse:
    """`events` are those of a background stream, encoded, each at its sequence number."""

    owner: str  # of the key that it was made with
    response: ResponseObject
    input: list[dict[str, Any]]
    messages: list[Message]  # the whole conversation, and once it has ended the answer
    events: list[bytes] = field(default_factory=list)
    is_streamed: bool = False
    has_ended: bool = False
    task: asyncio.Task[None] | None = None  # of one in the background
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    num_bytes: int = 0

    @property
    def is_running(self) -> bool:
        return not self.has_ended

    async def tell(self) -> None:
        async with self.news:
            self.news.notify_all()

    async def replay(self, starting_after: int) -> AsyncGenerator[bytes, None]:
        """Events from there on, waiting for those to come."""
        at = starting_after + 1
        while True:
            while at < len(self.events):
                yield self.events[at]
                at += 1
            if not self.is_running:
                return
            async with self.news:
                while at >= len(self.events) and self.is_running:
                    await self.news.wait()


class ResponseStore:
    """Drops what was used least lately; what still runs stays. Used on the event loop alone."""

    def __init__(
        self,
        max_responses: int = MAX_RESPONSES,
        max_bytes: int = MAX_BYTES,
        max_running: int = MAX_RUNNING,
    ) -> None:
        self.max_responses = max_responses
        self.max_bytes = max_bytes
        self.max_running = max_running
        # By owner and id: what others have made is as if it were not here.
        self.records: OrderedDict[tuple[str, str], StoredResponse] = OrderedDict()
        self.num_bytes = 0

    def get(self, owner: str, response_id: str, param: str | None = None) -> StoredResponse:
        """Raises NotFound."""
        record = self.records.get((owner, response_id))
        if record is None:
            raise NotFound(
                f"no stored response {response_id!r}: it was made with store=false, deleted, made "
                "before the server started, or dropped for newer ones (the last "
                f"{self.max_responses} are kept, up to {self.max_bytes >> 20} MiB)",
                param,
            )
        self.records.move_to_end((owner, response_id))
        return record

    def check_new(self, owner: str, response_id: str) -> None:
        """Raises BadRequest: a client must not overwrite what another one reads."""
        if (owner, response_id) in self.records:
            raise BadRequest(f"there is a response {response_id!r} already", "request_id")

    def check_running(self) -> None:
        """Raises Overloaded."""
        running = [r for r in self.records.values() if r.is_running and r.task is not None]
        if len(running) >= self.max_running:
            raise Overloaded(
                f"{self.max_running} responses run in the background, which is the most; retry "
                "when one has ended, or cancel one"
            )

    def add(self, record: StoredResponse) -> None:
        """Raises as `check_new`."""
        self.check_new(record.owner, record.response.id)
        self.records[record.owner, record.response.id] = record
        self.measure(record)

    def measure(self, record: StoredResponse) -> None:
        """Count a record that was added or has ended, and make room."""
        if self.records.get((record.owner, record.response.id)) is not record:
            return
        size = sum(map(len, record.events)) + sum(
            len(msgspec.json.encode(part))
            for part in (record.response, record.input, record.messages)
        )
        self.num_bytes += size - record.num_bytes
        record.num_bytes = size
        for key in list(self.records):
            if len(self.records) <= self.max_responses and self.num_bytes <= self.max_bytes:
                return
            if not self.records[key].is_running:
                self.remove(*key)

    def remove(self, owner: str, response_id: str) -> StoredResponse:
        """Raises NotFound. What runs goes on: end it first."""
        record = self.get(owner, response_id)
        del self.records[owner, response_id]
        self.num_bytes -= record.num_bytes
        return record

    def item(self, owner: str, item_id: str) -> dict[str, Any] | None:
        """An item of any of the owner's responses, as it could be sent as input."""
        for record in reversed(self.records.values()):
            if record.owner != owner:
                continue
            for item in record.input:
                if item.get("id") == item_id:
                    return item
            for made in record.response.output:
                if made.id == item_id:
                    found: dict[str, Any] = msgspec.to_builtins(made)
                    return found
        return None

    async def close(self) -> None:
        tasks = [record.task for record in self.records.values() if record.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
