"""Routes for developers, offered under VLLM_SERVER_DEV_MODE only: some disturb all clients."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from vllm.config.vllm import described
from vllm.entrypoints.openai.documented import NEVER
from vllm.entrypoints.openai.state import server_of
from vllm.errors import BadRequest, NotAvailable

router = APIRouter()


@router.post("/reset_prefix_cache", response_class=Response)
async def reset_prefix_cache(request: Request) -> Response:
    await server_of(request).context.engine.reset_prefix_cache()
    return Response(status_code=200)


@router.get("/server_info")
async def server_info(request: Request, config_format: str = "text") -> Response:
    """The engine's configuration, as one text or as an object of objects. No secrets."""
    if config_format not in ("text", "json"):
        raise BadRequest(f"config_format={config_format}: must be text or json", "config_format")
    config = server_of(request).context.config
    shown = described(config) if config_format == "json" else repr(config)
    return JSONResponse({"vllm_config": shown})


@router.post("/sleep", status_code=400, responses=NEVER)
@router.post("/wake_up", status_code=400, responses=NEVER)
@router.get("/is_sleeping", status_code=400, responses=NEVER)
async def sleep() -> Response:
    raise NotAvailable("sleep mode is not available yet; stop the server to free its memory")


@router.post("/collective_rpc", status_code=400, responses=NEVER)
async def collective_rpc() -> Response:
    raise NotAvailable(
        "collective_rpc is not available over HTTP: it would let a client call any method of the "
        "workers. Use LLM.collective_rpc or AsyncLLM.collective_rpc."
    )
