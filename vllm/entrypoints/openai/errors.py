"""Exceptions to OpenAI-shaped error responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from vllm.entrypoints.openai.admission import Unavailable
from vllm.entrypoints.openai.protocol.common import ErrorDetail, ErrorResponse
from vllm.errors import BadRequest, EngineDeadError


class NotFound(BadRequest):
    """The request names something that is not here. HTTP 404."""


_DETAIL = msgspec.json.schema_components([ErrorDetail])[1]["ErrorDetail"]
# In the OpenAPI schema, in place of the framework's own 422, which no route answers.
DOCUMENTED_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": text,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"error": _DETAIL},
                    "required": ["error"],
                }
            }
        },
    }
    for status, text in {
        "4XX": "What is wrong with the request; `param` names the field.",
        "5XX": "Why it cannot be served; after 503 a later attempt may be.",
    }.items()
}


class UnknownModel(NotFound):
    """The request names a model that is not served."""


class GenerationFailed(RuntimeError):
    """The engine could not go on with a request, and says why. HTTP 500."""


class EngineHung(Unavailable):
    """The engine may go on, or be ended and started again."""


class ClientGone(Exception):
    """The client closed the connection before there was an answer."""


def error_of(error: Exception) -> ErrorResponse:
    """What a client is told of an exception raised while its request was served.

    Nothing of one that is our mistake: its text may hold another client's data.
    """
    if isinstance(error, NotFound):
        return _response(HTTPStatus.NOT_FOUND, str(error), "NotFoundError", error.param)
    if isinstance(error, BadRequest):
        return _response(HTTPStatus.BAD_REQUEST, str(error), "BadRequestError", error.param)
    if isinstance(error, Unavailable):
        return _response(HTTPStatus.SERVICE_UNAVAILABLE, str(error), f"{type(error).__name__}Error")
    if isinstance(error, EngineDeadError):
        return _response(HTTPStatus.SERVICE_UNAVAILABLE, str(error), "EngineDeadError")
    if isinstance(error, GenerationFailed):
        return _response(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), "GenerationError")
    return _response(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        f"{type(error).__name__} while serving the request; the server's log has the details",
        "InternalServerError",
    )


def json_response(
    value: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        msgspec.json.encode(value), status, dict(headers or {}), media_type="application/json"
    )


def error_response(error: Exception) -> Response:
    body = error_of(error)
    assert body.error.code is not None
    headers = {"retry-after": str(error.retry_after_s)} if isinstance(error, Unavailable) else None
    return json_response(body, body.error.code, headers)


def install_error_handlers(app: FastAPI) -> None:
    async def typed(_: Request, error: Exception) -> Response:
        return error_response(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(bad_request_of(error))

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.BAD_REQUEST and error.__cause__ is not None:
            return error_response(_unreadable(error.__cause__))
        kind = HTTPStatus(error.status_code).phrase.title().replace(" ", "") + "Error"
        body = _response(error.status_code, str(error.detail), kind)
        return json_response(body, error.status_code, error.headers)

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; the access log does

    # The framework raises it again once answered, and the HTTP server logs it.
    app.add_exception_handler(Exception, typed)
    app.add_exception_handler(BadRequest, typed)
    app.add_exception_handler(EngineDeadError, typed)
    app.add_exception_handler(Unavailable, typed)
    app.add_exception_handler(GenerationFailed, typed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientGone, gone)


def _response(status: int, message: str, kind: str, param: str | None = None) -> ErrorResponse:
    return ErrorResponse(ErrorDetail(message, kind, param, int(status)))


def _unreadable(cause: BaseException) -> BadRequest:
    """What the framework found no words for while it read a body."""
    reason = "it must be a JSON object"
    if isinstance(cause, RecursionError):
        reason = "it is nested too deeply"
    elif isinstance(cause, UnicodeDecodeError):
        reason = f"it is not valid UTF-8 at byte {cause.start}"
    elif isinstance(cause, ValueError):
        reason = "one of its numbers has too many digits"
    return BadRequest(f"the request body cannot be read: {reason}")


def bad_request_of(error: RequestValidationError) -> BadRequest:
    """The first complaint; alternatives of a union are complaints about one field."""
    problems = error.errors()
    first = problems[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return BadRequest(f"the request body is not valid JSON: {reason} at {first['loc'][-1]}")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, BadRequest):
        return cause
    if first["loc"][0] == "query":
        name = str(first["loc"][-1])
        return BadRequest(f"{name}: {first['msg']}, got {first['input']!r:.100}", name)
    param = _field(first["loc"][1:], error.body)
    if not param:
        return BadRequest(
            "the request body must be a JSON object, sent with Content-Type: application/json"
        )
    texts = dict.fromkeys(
        problem["msg"] for problem in problems if _field(problem["loc"][1:], error.body) == param
    )
    return BadRequest(f"{param}: {'; or '.join(texts)}", param)


def _field(location: Sequence[str | int], body: Any) -> str:
    """The part of a pydantic location that is a path in the body: the rest names types.

    A missing field is the one name that may come last without being in the body.
    """
    path = ""
    for step in location:
        if isinstance(step, int):
            if not isinstance(body, list) or step >= len(body):
                break
            body = body[step]
            path += f"[{step}]"
        elif isinstance(body, dict):
            path += f".{step}" if path else step
            if step not in body:
                break
            body = body[step]
        else:
            break
    return path
