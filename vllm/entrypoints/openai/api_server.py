"""`python -m vllm.entrypoints.openai.api_server`: `vllm serve` under its older name.

The processes that it starts import it again, so it imports nothing until it is asked for.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vllm.entrypoints.openai.serving.context import ServingContext
    from vllm.metrics.live import LiveStats
    from vllm.metrics.logging import LoggingStats
    from vllm.metrics.prometheus import PrometheusStats


def build_app(
    context: ServingContext,
    metrics: PrometheusStats,
    log: LoggingStats,
    live: LiveStats | None = None,
) -> FastAPI:
    """As `vllm.entrypoints.openai.app.build_app`."""
    from vllm.entrypoints.openai import app

    return app.build_app(context, metrics, log, live)


def main() -> None:
    from vllm.entrypoints.cli.main import main as command_line

    sys.argv[1:1] = ["serve"]
    sys.exit(command_line())


if __name__ == "__main__":
    main()
