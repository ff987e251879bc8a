"""/v1/completions, /v1/chat/completions, and /invocations, which is either by its body."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import Response

from vllm.entrypoints.openai.documented import JSON_OR_EVENTS
from vllm.entrypoints.openai.errors import json_response
from vllm.entrypoints.openai.protocol.chat import ChatCompletionRequest
from vllm.entrypoints.openai.protocol.common import GenerationRequest
from vllm.entrypoints.openai.protocol.completion import CompletionRequest
from vllm.entrypoints.openai.serving.chat import ServingChat
from vllm.entrypoints.openai.serving.completion import ServingCompletion
from vllm.entrypoints.openai.state import server_of
from vllm.entrypoints.openai.streaming import EventStream, until_disconnect
from vllm.entrypoints.openai.wanted_copy import note_wanted_copy
from vllm.errors import BadRequest

router = APIRouter()


@router.post("/v1/completions", responses=JSON_OR_EVENTS)
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    return await _generate(body, request, server_of(request).completion)


@router.post("/v1/chat/completions", responses=JSON_OR_EVENTS)
async def create_chat_completion(body: ChatCompletionRequest, request: Request) -> Response:
    return await _generate(body, request, server_of(request).chat)


@router.post("/invocations", responses=JSON_OR_EVENTS)
async def invoke(body: dict[str, Any], request: Request) -> Response:
    """For SageMaker, which knows one path: `messages` make a chat, a `prompt` a completion."""
    try:
        if "messages" in body:
            chat = ChatCompletionRequest.model_validate(body)
            return await _generate(chat, request, server_of(request).chat)
        if "prompt" in body:
            completion = CompletionRequest.model_validate(body)
            return await _generate(completion, request, server_of(request).completion)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise RequestValidationError(problems, body=body) from None
    raise BadRequest(
        "the body has neither messages, as of /v1/chat/completions, nor prompt, as of "
        "/v1/completions"
    )


async def _generate(
    body: GenerationRequest, request: Request, serving: ServingCompletion | ServingChat
) -> Response:
    header_id = request.headers.get("x-request-id")
    note_wanted_copy(request)
    if body.stream:
        stream: Awaitable[AsyncGenerator[bytes, None]] = serving.stream(body, header_id)  # type: ignore[arg-type]
        return await EventStream.open(request, await stream)
    answer: Awaitable[msgspec.Struct] = serving.create(body, header_id)  # type: ignore[arg-type]
    return json_response(await until_disconnect(request.receive, answer))
