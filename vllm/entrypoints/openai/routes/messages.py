"""/v1/messages, with errors in the shape that its clients read."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from vllm.entrypoints.openai.admission import Unavailable
from vllm.entrypoints.openai.documented import JSON_OR_EVENTS, Documented
from vllm.entrypoints.openai.errors import (
    DOCUMENTED_ERRORS,
    ClientGone,
    GenerationFailed,
    bad_request_of,
    error_response,
    json_response,
)
from vllm.entrypoints.openai.protocol.messages import (
    ApiError,
    CountTokensRequest,
    MessagesRequest,
)
from vllm.entrypoints.openai.serving.messages import error_body, error_of_status
from vllm.entrypoints.openai.state import server_of
from vllm.entrypoints.openai.streaming import EventStream, until_disconnect
from vllm.errors import BadRequest, EngineDeadError
from vllm.logger import init_logger

logger = init_logger(__name__)


class MessagesRoute(APIRoute):
    """Answers errors itself: the application's handlers know one shape, the OpenAI API's."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return _error(bad_request_of(error))
            except (BadRequest, Unavailable, EngineDeadError, GenerationFailed) as error:
                return _error(error)
            except HTTPException as error:
                body = error_of_status(error.status_code, str(error.detail))
                return json_response(body, error.status_code, error.headers)
            except ClientGone:
                raise
            except Exception as error:
                logger.exception("a message failed")
                return _error(error)

        return answer


def _documented_errors() -> Documented:
    """Of Anthropic's shape; of OpenAI's where one arises before a route is reached."""
    detail = msgspec.json.schema_components([ApiError])[1]["ApiError"]
    shape = {"type": "object", "properties": {"type": {"const": "error"}, "error": detail}}
    errors = {}
    for status, said in DOCUMENTED_ERRORS.items():
        early = said["content"]["application/json"]["schema"]
        schema = {"anyOf": [{**shape, "required": ["type", "error"]}, early]}
        errors[status] = {**said, "content": {"application/json": {"schema": schema}}}
    return errors


ERRORS: Final = _documented_errors()
router = APIRouter(route_class=MessagesRoute)


@router.post("/v1/messages", responses={**JSON_OR_EVENTS, **ERRORS})
async def create_message(body: MessagesRequest, request: Request) -> Response:
    header_id = request.headers.get("x-request-id")
    serving = server_of(request).messages
    if body.stream:
        return await EventStream.open(request, await serving.stream(body, header_id))
    return json_response(await until_disconnect(request.receive, serving.create(body, header_id)))


@router.post("/v1/messages/count_tokens", responses=ERRORS)
async def count_tokens(body: CountTokensRequest, request: Request) -> Response:
    return json_response(await server_of(request).messages.count_tokens(body))


def _error(error: Exception) -> Response:
    """With the status and headers that every route's error has."""
    plain = error_response(error)
    retry = plain.headers.get("retry-after")
    headers = {"retry-after": retry} if retry is not None else None
    return json_response(error_body(error), plain.status_code, headers)
