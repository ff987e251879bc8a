"""/tokenize and /detokenize"""

from __future__ import annotations

import msgspec
from pydantic import StrictInt

from vllm.entrypoints.openai.protocol.chat import ChatMessageParam, ChatRenderRequest
from vllm.entrypoints.openai.protocol.common import RequestModel


class TokenizeRequest(RequestModel, ChatRenderRequest):
    """Either a prompt or messages; special tokens are added by default to the one only."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessageParam] | None = None  # type: ignore[assignment]
    add_special_tokens: bool | None = None  # type: ignore[assignment]
    return_token_strs: bool | None = False


class TokenizeResponse(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestModel):
    model: str | None = None
    tokens: list[StrictInt]


class DetokenizeResponse(msgspec.Struct):
    prompt: str
