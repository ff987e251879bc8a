"""How other endpoints ask for a chat: as /v1/chat/completions would, with errors in their terms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from pydantic import ValidationError

from vllm.entrypoints.openai.protocol.chat import ChatCompletionRequest
from vllm.entrypoints.openai.serving.chat_run import ChatRun
from vllm.errors import BadRequest


class ChatSource(Protocol):
    """What other endpoints call of ServingChat."""

    async def start(self, request: ChatCompletionRequest, header_id: str | None) -> ChatRun: ...


def chat_request(fields: Mapping[str, Any]) -> ChatCompletionRequest:
    """None: not given. Raises BadRequest in the chat's terms."""
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return ChatCompletionRequest.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, BadRequest):
            raise cause from None
        param = ".".join(map(str, first["loc"]))
        raise BadRequest(f"{param}: {first['msg']}", param) from None


@contextmanager
def named_as_asked(names: Mapping[str, str]) -> Iterator[None]:
    """Errors name the field that the client sent: `names` has it by the chat's."""
    try:
        yield
    except BadRequest as error:
        root = re.split(r"[.\[]", error.param or "")[0]
        if root not in names:
            raise
        message = re.sub(rf"\b{root}\b", names[root], str(error), count=1)
        raise type(error)(message, names[root]) from error
