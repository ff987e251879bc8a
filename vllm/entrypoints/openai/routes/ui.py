"""The page at `/` and what it polls. Open without a key: neither shows more than /metrics does."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from vllm.entrypoints.openai.serving.context import ServingContext
from vllm.entrypoints.openai.state import server_of
from vllm.entrypoints.ui.document import load_document
from vllm.errors import EngineDeadError
from vllm.messages.facts import RankMemory
from vllm.metrics.live import SAMPLE_S, LiveView
from vllm.version import __version__

router = APIRouter(include_in_schema=False)
document = cache(load_document)


class Facts(msgspec.Struct):
    """What does not change while the server runs."""

    version: str
    models: tuple[str, ...]
    max_model_len: int
    device: str
    dtype: str
    block_size: int
    num_engines: int
    ranks: tuple[RankMemory, ...]  # of all engines
    has_chat_template: bool
    needs_key: bool
    max_logprobs: int
    default_sampling_params: dict[str, Any]
    sample_s: float


class LiveAnswer(msgspec.Struct):
    is_alive: bool
    facts: Facts
    live: LiveView


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    found = document()
    headers = {
        "etag": found.etag,
        "cache-control": "no-cache",
        "vary": "accept-encoding",
        "content-security-policy": found.policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    if found.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    body = found.body
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        body = found.compressed
    return Response(body, headers=headers, media_type="text/html")


@router.get("/ui/live")
async def live(request: Request, after: int = 0) -> Response:
    """The samples after that of the second `after`."""
    server = server_of(request)
    assert server.live is not None, "this route is for servers with a page"
    try:
        await server.context.engine.check_health()
        is_alive = True
    except EngineDeadError:
        is_alive = False
    answer = LiveAnswer(is_alive, _facts(server.context), server.live.view(after))
    return Response(
        msgspec.json.encode(answer),
        headers={"cache-control": "no-store"},
        media_type="application/json",
    )


def _facts(context: ServingContext) -> Facts:
    config = context.config
    cores = context.engine.client.cores
    return Facts(
        version=__version__,
        models=config.model.served_model_name,
        max_model_len=config.model.max_model_len,
        device=config.device.device,
        dtype=str(config.model.dtype).removeprefix("torch."),
        block_size=config.cache.block_size,
        num_engines=len(cores),
        ranks=tuple(rank for core in cores for rank in core.ranks),
        has_chat_template=bool(context.chat_template or context.tokenizer.chat_template),
        needs_key=bool(context.options.api_key),
        max_logprobs=config.model.max_logprobs,
        default_sampling_params=dict(config.model.default_sampling_params),
        sample_s=SAMPLE_S,
    )
