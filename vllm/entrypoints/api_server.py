"""`python -m vllm.entrypoints.api_server`: a plain server with one route, POST /generate.

For scripts written for vLLM's; `vllm serve` is the server with everything. The processes that it
starts import this again, so it imports nothing until it is asked for.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vllm.engine.async_llm import AsyncLLM


async def init_app(args: argparse.Namespace, llm_engine: AsyncLLM | None = None) -> FastAPI:
    """The application, over `llm_engine` or an engine of its own (`app.state.engine_client`)."""
    from vllm.entrypoints.plain_server import make_app, make_engine

    return make_app(llm_engine or make_engine(args), args.root_path or "")


async def run_server(args: argparse.Namespace, llm_engine: AsyncLLM | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Raises ConfigError, EngineDeadError."""
    from vllm.entrypoints.plain_server import serve

    await serve(args, llm_engine)


def make_arg_parser() -> Any:
    from vllm.config.flags import add_settings
    from vllm.config.option import settings_of
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.openai.transport.options import LOG_LEVELS, TransportOptions
    from vllm.utils.argparse import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="python -m vllm.entrypoints.api_server")
    taken = (
        "host port root_path ssl_keyfile ssl_certfile ssl_ca_certs ssl_cert_reqs enable_ssl_refresh"
    ).split()
    settings = [s for s in settings_of(TransportOptions) if s.name in taken]
    add_settings(parser, "server", settings)
    parser.add_argument(
        "--log-level",
        dest="uvicorn_log_level",
        choices=LOG_LEVELS,
        help="how much the HTTP server says",
    )
    AsyncEngineArgs.add_cli_args(parser)
    return parser


def main(words: list[str] | None = None) -> int:
    import asyncio

    from vllm.errors import ConfigError, EngineDeadError, LoadError

    args = make_arg_parser().parse_args(words)
    try:
        asyncio.run(run_server(args))
    except (ConfigError, LoadError) as error:
        print(f"api_server: {error}", file=sys.stderr)
        return 2
    except EngineDeadError as error:
        print(f"api_server: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
