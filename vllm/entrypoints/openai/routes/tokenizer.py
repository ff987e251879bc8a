"""/tokenize and /detokenize, and what the tokenizer says of itself where that is offered."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from vllm.entrypoints.openai.errors import json_response
from vllm.entrypoints.openai.protocol.tokenize import DetokenizeRequest, TokenizeRequest
from vllm.entrypoints.openai.state import server_of

router = APIRouter()
info_router = APIRouter()  # offered with --enable-tokenizer-info-endpoint only


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    return json_response(await server_of(request).tokenize.tokenize(body))


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    return json_response(await server_of(request).tokenize.detokenize(body))


@info_router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> Response:
    """The tokenizer's configuration, its chat template included."""
    return JSONResponse(server_of(request).tokenize.info())
