"""/v1/responses and what one can do with a response that is kept."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from vllm.entrypoints.openai.documented import JSON_OR_EVENTS
from vllm.entrypoints.openai.errors import json_response
from vllm.entrypoints.openai.middleware import owner_of
from vllm.entrypoints.openai.protocol.responses import ResponsesRequest
from vllm.entrypoints.openai.state import server_of
from vllm.entrypoints.openai.streaming import EventStream, until_disconnect

router = APIRouter()


@router.post("/v1/responses", responses=JSON_OR_EVENTS)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    header_id = request.headers.get("x-request-id")
    serving, owner = server_of(request).responses, owner_of(request)
    if body.stream:
        return await EventStream.open(request, await serving.stream(body, header_id, owner))
    return json_response(
        await until_disconnect(request.receive, serving.create(body, header_id, owner))
    )


@router.get("/v1/responses/{response_id}", responses=JSON_OR_EVENTS)
async def get_response(
    response_id: str, request: Request, stream: bool = False, starting_after: int = -1
) -> Response:
    serving = server_of(request).responses
    if stream:
        return EventStream(b"", serving.replay(owner_of(request), response_id, starting_after))
    return json_response(serving.get(owner_of(request), response_id))


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(response_id: str, request: Request) -> Response:
    return json_response(await server_of(request).responses.cancel(owner_of(request), response_id))


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, request: Request) -> Response:
    return json_response(await server_of(request).responses.delete(owner_of(request), response_id))


@router.get("/v1/responses/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    request: Request,
    after: str | None = None,
    limit: int = 20,
    order: str = "desc",
) -> Response:
    serving = server_of(request).responses
    return json_response(serving.input_items(owner_of(request), response_id, after, limit, order))
