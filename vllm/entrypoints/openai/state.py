"""What the routes call; held by the application."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from vllm.entrypoints.openai.serving.chat import ServingChat
from vllm.entrypoints.openai.serving.completion import ServingCompletion
from vllm.entrypoints.openai.serving.context import ServingContext
from vllm.entrypoints.openai.serving.messages import ServingMessages
from vllm.entrypoints.openai.serving.models import ServingModels
from vllm.entrypoints.openai.serving.responses import ServingResponses
from vllm.entrypoints.openai.serving.tokenize import ServingTokenize
from vllm.metrics.live import LiveStats
from vllm.metrics.logging import LoggingStats
from vllm.metrics.prometheus import PrometheusStats


@dataclass(frozen=True, slots=True)
class ServerState:
    context: ServingContext
    models: ServingModels
    completion: ServingCompletion
    chat: ServingChat
    responses: ServingResponses
    messages: ServingMessages
    tokenize: ServingTokenize
    metrics: PrometheusStats
    log: LoggingStats
    live: LiveStats | None  # None: there is no page


def server_of(request: Request) -> ServerState:
    state: ServerState = request.app.state.server
    return state
