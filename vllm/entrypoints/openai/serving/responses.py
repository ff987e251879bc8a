"""/v1/responses: a conversation in items, kept between requests if the client likes."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import msgspec

from vllm import envs
from vllm.entrypoints.openai.errors import error_of
from vllm.entrypoints.openai.logprobs import TokenNamer, chat_logprobs
from vllm.entrypoints.openai.protocol.chat import TokenLogprob
from vllm.entrypoints.openai.protocol.common import now_s, random_id
from vllm.entrypoints.openai.protocol.response_events import Created, Event, InProgress, Queued
from vllm.entrypoints.openai.protocol.responses import (
    CHAT_FIELDS,
    LOGPROBS,
    MAX_ITEMS,
    Deleted,
    InputDetails,
    InputItems,
    OutputDetails,
    ResponseObject,
    ResponsesRequest,
    ResponseUsage,
)
from vllm.entrypoints.openai.serving.chat_run import ChatRun, MessageUpdate
from vllm.entrypoints.openai.serving.chat_source import ChatSource, chat_request, named_as_asked
from vllm.entrypoints.openai.serving.context import ServingContext
from vllm.entrypoints.openai.serving.response_events import ResponseStream, reasoning_text
from vllm.entrypoints.openai.serving.response_input import (
    Conversation,
    add_output,
    resolve_references,
    with_ids,
)
from vllm.entrypoints.openai.serving.response_store import ResponseStore, StoredResponse
from vllm.entrypoints.openai.serving.response_tools import chat_choice, chat_tools
from vllm.errors import BadRequest, NotAvailable
from vllm.logger import init_logger

logger = init_logger(__name__)
# What a chat's errors name, in the terms of a response.
NAMES: Final = {
    "messages": "input",
    "prompt": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
encoder = msgspec.json.Encoder()


class ServingResponses:
    """Owns the store and, through it, what runs in the background."""

    def __init__(self, context: ServingContext, chat: ChatSource) -> None:
        self.context = context
        self.chat = chat
        self.store = ResponseStore()

    async def create(
        self, request: ResponsesRequest, header_id: str | None, owner: str = ""
    ) -> ResponseObject:
        run = await self._start(request, header_id, owner)
        if request.background:
            queued = copy.deepcopy(run.response)  # before it is told, it may have begun
            self._run_in_background(run)
            return queued
        async with aclosing(run.events()) as events:
            async for _ in events:
                pass
        return run.response

    async def stream(
        self, request: ResponsesRequest, header_id: str | None, owner: str = ""
    ) -> AsyncGenerator[bytes, None]:
        run = await self._start(request, header_id, owner)
        if request.background:
            self._run_in_background(run)
            return run.record.replay(-1)
        return run.stream()

    def get(self, owner: str, response_id: str) -> ResponseObject:
        """Raises NotFound."""
        return self.store.get(owner, response_id).response

    def replay(
        self, owner: str, response_id: str, starting_after: int
    ) -> AsyncGenerator[bytes, None]:
        """Raises BadRequest, NotFound."""
        record = self.store.get(owner, response_id)
        if not record.is_streamed:
            raise BadRequest(
                f"response {response_id!r} has no stream to go on with: it was not made with "
                "background=true and stream=true",
                "stream",
            )
        if starting_after < -1:
            raise BadRequest("starting_after must be a sequence_number", "starting_after")
        return record.replay(starting_after)

    async def cancel(self, owner: str, response_id: str) -> ResponseObject:
        """Raises BadRequest, NotFound."""
        record = self.store.get(owner, response_id)
        if record.task is None:
            raise BadRequest(
                f"response {response_id!r} does not run in the background; to end it, close the "
                "connection that asked for it",
                "response_id",
            )
        await _ended(record)
        return record.response

    async def delete(self, owner: str, response_id: str) -> Deleted:
        """Raises NotFound."""
        await _ended(self.store.get(owner, response_id))
        self.store.remove(owner, response_id)
        return Deleted(response_id)

    def input_items(
        self, owner: str, response_id: str, after: str | None, limit: int, order: str
    ) -> InputItems:
        """Raises BadRequest, NotFound."""
        if order not in ("asc", "desc"):
            raise BadRequest(f"order {order!r} must be asc or desc", "order")
        if not 1 <= limit <= 100:
            raise BadRequest(f"limit must be 1 to 100, got {limit}", "limit")
        items = list(self.store.get(owner, response_id).input)
        if order == "desc":
            items.reverse()
        ids = [item["id"] for item in items]
        if after is not None:
            if after not in ids:
                raise BadRequest(f"after: the input has no item {after!r}", "after")
            items = items[ids.index(after) + 1 :]
        page = items[:limit]
        first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
        return InputItems(page, first, last, len(items) > limit)

    async def close(self) -> None:
        await self.store.close()

    async def _start(
        self, request: ResponsesRequest, header_id: str | None, owner: str
    ) -> ResponseRun:
        """All that can be wrong with a request, but what only the engine can tell."""
        self.context.admission.check()
        request.warn_about_unknown_fields()
        model = self.context.resolve_model(request.model)
        request.refuse_what_is_unavailable()
        _check(request)
        is_kept = self._is_kept(request)
        if request.background:
            self.store.check_running()
        response_id = request.request_id or f"resp_{random_id()}"
        self.store.check_new(owner, response_id)
        items, conversation = self._conversation(request, owner)
        chat = _chat_fields(request)
        system = [{"role": "system", "content": request.instructions}]
        chat["messages"] = (system if request.instructions else []) + conversation.messages
        chat["request_id"] = response_id
        with named_as_asked(NAMES):
            run = await self.chat.start(chat_request(chat), header_id)
        defaults = self.context.model.default_sampling_params
        response = _response(request, response_id, model, defaults)
        response.store = is_kept
        record = StoredResponse(owner, response, items, conversation.messages)
        record.is_streamed = bool(request.background and request.stream)
        return ResponseRun(self, request, run, record, conversation, is_kept)

    def _is_kept(self, request: ResponsesRequest) -> bool:
        reason = ""
        if not envs.VLLM_ENABLE_RESPONSES_API_STORE:
            reason = "VLLM_ENABLE_RESPONSES_API_STORE=0: this server keeps no responses"
        elif self.context.options.api_server_count > 1:
            reason = "--api-server-count is not 1: one API server would not find what another keeps"
        for name in ("background", "store", "previous_response_id"):
            if reason and getattr(request, name):
                raise NotAvailable(f"{name} is not available here; {reason}", name)
        if request.background and request.store is False:
            raise BadRequest("background=true needs store=true: how else to get it", "background")
        return not reason and request.store is not False

    def _conversation(
        self, request: ResponsesRequest, owner: str
    ) -> tuple[list[dict[str, Any]], Conversation]:
        """Raises BadRequest, NotFound."""
        if isinstance(request.input, list) and len(request.input) > MAX_ITEMS:
            raise BadRequest(
                f"input has {len(request.input)} items; {MAX_ITEMS} may be sent", "input"
            )
        earlier = []
        if request.previous_response_id is not None:
            record = self.store.get(owner, request.previous_response_id, "previous_response_id")
            if record.response.is_running:
                raise BadRequest(
                    f"previous_response_id {record.response.id!r} still runs; wait for its end",
                    "previous_response_id",
                )
            earlier = record.messages
        items = with_ids(request.input)
        conversation = Conversation(earlier)
        own_item = partial(self.store.item, owner)
        for i, item in enumerate(resolve_references(items, own_item)):
            conversation.add(item, "input" if isinstance(request.input, str) else f"input[{i}]")
        return items, conversation

    def _run_in_background(self, run: ResponseRun) -> None:
        self.store.add(run.record)
        run.record.task = asyncio.create_task(run.in_background())


class ResponseRun:
    """One response being made."""

    def __init__(
        self,
        serving: ServingResponses,
        request: ResponsesRequest,
        chat: ChatRun,
        record: StoredResponse,
        conversation: Conversation,
        is_kept: bool,
    ) -> None:
        self.context = serving.context
        self.store = serving.store
        self.request = request
        self.chat = chat
        self.record = record
        self.conversation = conversation
        self.is_kept = is_kept
        self.items = ResponseStream(record.response)
        self.name = TokenNamer(self.context.text_decoder, False)
        self.num_events = 0

    @property
    def response(self) -> ResponseObject:
        return self.record.response

    async def events(self) -> AsyncGenerator[list[bytes], None]:
        """Encoded, in bunches: one per engine output. Ends with the response.

        The first comes with the engine's first word, so that a request which the engine refuses
        is still answered by a status. Raises what the engine does.
        """
        is_cut = False
        if self.is_kept and self.record.task is None:
            self.store.add(self.record)
        try:
            async with aclosing(self.chat.updates()) as updates:
                while (bunch := await self._next(updates)) is not None:
                    made = self._begin() if self.response.status == "queued" else []
                    for update in bunch:
                        made += self._encoded(
                            self.items.push(update.deltas, self._logprobs(update))
                        )
                        is_cut |= update.finish_reason == "length"
                    yield made
            made = self._encoded(self.items.finish(is_cut, await self._usage()))
            self._keep()
            yield made
        finally:
            if self.response.is_running and self.record.task is None:
                self._forget()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """A failure after the first event is told as one."""
        has_begun = False
        try:
            async with aclosing(self.events()) as bunches:
                async for bunch in bunches:
                    has_begun = True
                    yield b"".join(bunch)
        except Exception as error:
            if not has_begun:
                raise
            logger.exception("a response ended with an error")
            yield b"".join(self._failed(error))

    async def in_background(self) -> None:
        """Never raises but when cancelled twice: what happened is in the record."""
        first = [Created(response=self.response), Queued(response=self.response)]
        self._record(self._encoded(first))
        try:
            async with aclosing(self.events()) as bunches:
                async for bunch in bunches:
                    self._record(bunch)
                    await self.record.tell()
        except asyncio.CancelledError:
            self._record(self._encoded(self.items.cancel()))
        except Exception as error:
            logger.exception("a response in the background ended with an error")
            self._record(self._failed(error))
        finally:
            self._keep()
            await self.record.tell()

    async def _next(
        self, updates: AsyncGenerator[list[MessageUpdate], None]
    ) -> list[MessageUpdate] | None:
        with named_as_asked(NAMES):
            return await anext(updates, None)

    def _begin(self) -> list[bytes]:
        self.response.status = "in_progress"
        created = [] if self.num_events else [Created(response=self.response)]
        return self._encoded([*created, InProgress(response=self.response)])

    def _encoded(self, events: Iterable[Event]) -> list[bytes]:
        """At once, one by one: events refer to items that go on changing."""
        encoded = []
        for event in events:
            event.sequence_number = self.num_events
            self.num_events += 1
            name = str(event.__struct_config__.tag).encode()
            encoded.append(b"event: %b\ndata: %b\n\n" % (name, encoder.encode(event)))
        return encoded

    def _logprobs(self, update: MessageUpdate) -> list[TokenLogprob]:
        if not self.request.wants_logprobs or update.sequence.logprobs is None:
            return []
        sequence = update.sequence
        count = self.request.top_logprobs or 0
        return chat_logprobs(self.name, count, sequence.token_ids, sequence.logprobs or ()).content

    async def _usage(self) -> ResponseUsage:
        usage = self.chat.meter.usage()
        cached = sum(self.chat.meter.num_cached_tokens.values())
        thought = reasoning_text(self.response.output)
        ids = await self.context.encode(thought, False, "reasoning") if thought else []
        num_output = usage.completion_tokens
        return ResponseUsage(
            usage.prompt_tokens,
            InputDetails(cached),
            num_output,
            OutputDetails(min(len(ids), num_output)),
            usage.total_tokens,
        )

    def _failed(self, error: Exception) -> list[bytes]:
        self._forget()
        code = "invalid_prompt" if isinstance(error, BadRequest) else "server_error"
        return self._encoded(self.items.fail(code, error_of(error).error.message))

    def _record(self, events: list[bytes]) -> None:
        if self.record.is_streamed:
            self.record.events += events

    def _keep(self) -> None:
        if self.record.has_ended:
            return
        add_output(self.conversation, self.response.output)
        self.record.messages = self.conversation.messages
        self.record.has_ended = True
        self.store.measure(self.record)

    def _forget(self) -> None:
        """Of one that nobody waits for any more; one in the background stays, to tell its end."""
        if self.record.task is None:
            self.record.has_ended = True
            key = self.record.owner, self.response.id
            if self.store.records.get(key) is self.record:
                self.store.remove(*key)


def _check(request: ResponsesRequest) -> None:
    """Raises BadRequest for what contradicts or cannot be done."""
    top = request.top_logprobs
    if top is not None and not 0 <= top <= 20:
        raise BadRequest(f"top_logprobs must be 0 to 20, got {top}", "top_logprobs")
    if top and not request.wants_logprobs:
        raise BadRequest(f"top_logprobs needs include=[{LOGPROBS!r}]", "top_logprobs")
    if request.max_output_tokens is not None and request.max_output_tokens < 1:
        raise BadRequest(
            f"max_output_tokens must be at least 1, got {request.max_output_tokens}",
            "max_output_tokens",
        )
    if request.request_id is not None and not 0 < len(request.request_id) <= 256:
        raise BadRequest("request_id must have 1 to 256 characters", "request_id")
    mode = request.reasoning.mode if request.reasoning is not None else None
    if mode not in (None, "standard"):
        raise NotAvailable(
            f"reasoning.mode {mode!r} is not available here; leave it out, or say standard",
            "reasoning.mode",
        )


def _chat_fields(request: ResponsesRequest) -> dict[str, Any]:
    fields = {name: getattr(request, name) for name in CHAT_FIELDS}
    choice, tools = chat_choice(request.tool_choice, chat_tools(request.tools))
    fields |= {
        "stream": True,  # each token is seen as it comes, whoever waits for the whole
        "max_completion_tokens": request.max_output_tokens,
        "tools": tools,
        "tool_choice": choice,
        "response_format": _response_format(request),
    }
    if request.reasoning is not None:
        fields["reasoning_effort"] = request.reasoning.effort
    if request.wants_logprobs:
        fields |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    return fields


def _response_format(request: ResponsesRequest) -> dict[str, Any] | None:
    asked = request.text.format if request.text is not None else None
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return {"type": "json_object"}
    if asked.schema_ is None:
        raise BadRequest("text.format of type json_schema needs a schema", "text.format.schema")
    named = {"name": asked.name or "answer", "schema": asked.schema_}
    return {"type": "json_schema", "json_schema": named}


def _response(
    request: ResponsesRequest, response_id: str, model: str, defaults: Mapping[str, Any]
) -> ResponseObject:
    text = request.text.model_dump(by_alias=True, exclude_none=True) if request.text else {}
    reasoning = request.reasoning.model_dump() if request.reasoning else {}
    response = ResponseObject(
        id=response_id,
        created_at=now_s(),
        model=model,
        status="queued",
        instructions=request.instructions,
        metadata=request.metadata or {},
        previous_response_id=request.previous_response_id,
        background=bool(request.background),
        store=True,
        max_output_tokens=request.max_output_tokens,
        temperature=_first(request.temperature, defaults.get("temperature"), 1.0),
        top_p=_first(request.top_p, defaults.get("top_p"), 1.0),
        top_logprobs=request.top_logprobs or 0,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        tools=request.tools or [],
        tool_choice=request.tool_choice or "auto",
        reasoning={"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        text={"format": {"type": "text"}, **text},
        user=request.user,
    )
    if request.safety_identifier is not None:
        response.safety_identifier = request.safety_identifier
    if request.prompt_cache_key is not None:
        response.prompt_cache_key = request.prompt_cache_key
    return response


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


async def _ended(record: StoredResponse) -> None:
    """A background response that has ended, if need be by cancelling it."""
    if record.task is not None and not record.has_ended:
        await asyncio.sleep(0)  # a task that was cancelled before it began would not say so
        record.task.cancel()
        await asyncio.wait([record.task])
