"""The application of vllm.entrypoints.api_server: prompts and sampling parameters in, texts out."""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final, Protocol

import msgspec
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from vllm.config.flags import from_flags
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.async_llm import AsyncLLM
from vllm.entrypoints.openai.admission import Admission
from vllm.entrypoints.openai.documented import HEALTH, Documented
from vllm.entrypoints.openai.errors import (
    DOCUMENTED_ERRORS,
    GenerationFailed,
    error_of,
    install_error_handlers,
)
from vllm.entrypoints.openai.streaming import EventStream, until_disconnect
from vllm.entrypoints.openai.transport.limits import RequestLimits
from vllm.entrypoints.openai.transport.listener import Listener
from vllm.entrypoints.openai.transport.options import TransportOptions
from vllm.entrypoints.openai.transport.server import HttpServer
from vllm.entrypoints.openai.transport.tls import tls_of
from vllm.errors import BadRequest, EngineDeadError
from vllm.inputs.text import check_encodable
from vllm.logger import init_logger
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.utils.ids import random_uuid

logger = init_logger(__name__)
# Those that a program sets, not a client.
NOT_FOR_CLIENTS: Final = frozenset({"output_kind", "logits_processors", "bad_words_token_ids"})

JSON: Final = {"application/json": {"schema": {"type": "object"}}}
BODY: Final[dict[str, Any]] = {"requestBody": {"content": JSON, "required": True}}
JSON_OR_LINES: Final[Documented] = {
    200: {
        "description": "One object, or with `stream` one per line.",
        "content": {"application/json": {}, "application/x-ndjson": {}},
    }
}


class PlainEngine(Protocol):
    """What the routes call of AsyncLLM."""

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]: ...

    async def check_health(self) -> None: ...


class LineStream(EventStream):
    """A JSON object per line."""

    media_type = "application/x-ndjson"


def make_engine(args: argparse.Namespace) -> AsyncLLM:
    return AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(args))


def make_app(
    engine: PlainEngine, root_path: str = "", admission: Admission | None = None
) -> FastAPI:
    app = FastAPI(title="vLLM, plain", root_path=root_path, responses=DOCUMENTED_ERRORS)
    app.state.engine_client = engine
    admitted = Admission() if admission is None else admission

    @app.get("/health", response_class=Response, responses=HEALTH)
    async def health() -> Response:
        try:
            await engine.check_health()
        except EngineDeadError:
            return Response(status_code=503)
        return Response(status_code=503 if admitted.is_closed else 200)

    @app.post("/generate", openapi_extra=BODY, responses=JSON_OR_LINES)
    async def generate(request: Request) -> Response:
        """`prompt`, `stream`, and fields of SamplingParams; {"text": [...]}, prompts included."""
        admitted.check()
        body = await _body(request)
        prompt, stream = _prompt(body), body.pop("stream", False)
        if not isinstance(stream, bool):
            raise BadRequest(f"stream must be true or false, got {stream!r:.100}", "stream")
        params = _params(body)
        params.output_kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        texts = _texts(engine.generate(prompt, params, random_uuid()), [prompt] * params.n)
        if stream:
            return await LineStream.open(request, _lines(texts))
        return JSONResponse({"text": await until_disconnect(request.receive, _last(texts))})

    install_error_handlers(app)
    return app


async def serve(args: argparse.Namespace, llm_engine: AsyncLLM | None) -> None:
    """Raises ConfigError, EngineDeadError. An engine that was given is left running."""
    options = from_flags(TransportOptions, args)
    tls = tls_of(options)
    listener = Listener(options, tls is not None)
    engine = llm_engine
    try:
        engine = make_engine(args) if llm_engine is None else llm_engine
        await engine.check_health()
        admission = Admission()
        app = make_app(engine, options.root_path, admission)
        app.add_middleware(RequestLimits, options=options)
        server = HttpServer(options, app, engine, admission, tls)
        server.on_started = lambda: print(f"Ready: {listener.url}/generate", flush=True)
        await server.run_until_told(listener.socket)
    finally:
        listener.close()
        if engine is not None and llm_engine is None:
            engine.shutdown()


async def _body(request: Request) -> dict[str, Any]:
    """Whatever its Content-Type: callers of a server this plain leave that out."""
    try:
        body = await request.json()
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("the request body must be a JSON object")
    return body


def _prompt(body: dict[str, Any]) -> str:
    prompt = body.pop("prompt", None)
    if not isinstance(prompt, str):
        raise BadRequest(f"prompt must be text, got {prompt!r:.100}", "prompt")
    check_encodable("prompt", prompt)
    return prompt


def _params(fields: Mapping[str, Any]) -> SamplingParams:
    """Raises BadRequest."""
    known = set(SamplingParams.__struct_fields__) - NOT_FOR_CLIENTS
    for name in fields:
        if name not in known:
            raise BadRequest(f"{name!r:.100} is no field of SamplingParams", name)
    try:
        # Texts become what the fields hold: structured outputs, and token ids as keys.
        return msgspec.convert(dict(fields), SamplingParams, strict=False)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, BadRequest):
            raise error.__cause__ from None
        raise BadRequest(f"the sampling parameters are wrong: {error}") from None


async def _texts(
    outputs: AsyncGenerator[RequestOutput, None], found: list[str]
) -> AsyncGenerator[list[str], None]:
    """Of all sequences, so far; `found` is what they begin with."""
    async with aclosing(outputs):
        async for output in outputs:
            for sequence in output.outputs:
                if sequence.finish_reason == "error":
                    raise GenerationFailed(str(sequence.stop_reason))
                found[sequence.index] += sequence.text
            yield list(found)


async def _last(texts: AsyncGenerator[list[str], None]) -> list[str]:
    last: list[str] = []
    async with aclosing(texts):
        async for some in texts:
            last = some
    return last


async def _lines(texts: AsyncGenerator[list[str], None]) -> AsyncGenerator[bytes, None]:
    """A failure after the first is a line, too."""
    has_begun = False
    try:
        async with aclosing(texts):
            async for some in texts:
                has_begun = True
                yield json.dumps({"text": some}).encode() + b"\n"
    except Exception as error:
        if not has_begun:
            raise
        logger.exception("a stream ended with an error")
        yield msgspec.json.encode(error_of(error)) + b"\n"
