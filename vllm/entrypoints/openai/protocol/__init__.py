"""Bodies of requests and responses, one file per group of endpoints."""

from vllm.entrypoints.openai.protocol.chat import (
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatMessage,
    ChatMessageParam,
    DeltaMessage,
)
from vllm.entrypoints.openai.protocol.common import (
    ErrorDetail,
    ErrorResponse,
    StreamOptions,
    Usage,
)
from vllm.entrypoints.openai.protocol.completion import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
)
from vllm.entrypoints.openai.protocol.models import ModelCard, ModelList
from vllm.entrypoints.openai.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)

__all__ = [
    "ChatCompletionChunk",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "ChatMessage",
    "ChatMessageParam",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionRequest",
    "CompletionResponse",
    "DeltaMessage",
    "DetokenizeRequest",
    "DetokenizeResponse",
    "ErrorDetail",
    "ErrorResponse",
    "ModelCard",
    "ModelList",
    "StreamOptions",
    "TokenizeRequest",
    "TokenizeResponse",
    "Usage",
]
