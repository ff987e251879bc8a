"""/tokenize and /detokenize, exactly as generation would."""

from __future__ import annotations

from typing import Any

from vllm.config.vllm import plain
from vllm.entrypoints.openai.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from vllm.entrypoints.openai.serving.context import ServingContext
from vllm.errors import BadRequest


class ServingTokenize:
    def __init__(self, context: ServingContext) -> None:
        self.context = context

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResponse:
        request.warn_about_unknown_fields()
        self.context.resolve_model(request.model)
        if (request.prompt is None) == (request.messages is None):
            raise BadRequest("give either prompt or messages", "prompt")
        ids = await self._encode(request)
        response = TokenizeResponse(len(ids), self.context.model.max_model_len, ids)
        if request.return_token_strs:
            response.token_strs = list(self.context.tokenizer.convert_ids_to_tokens(ids))
        return response

    async def _encode(self, request: TokenizeRequest) -> list[int]:
        special = request.add_special_tokens
        if request.prompt is not None:
            return await self.context.encode(request.prompt, special in (None, True), "prompt")
        request.add_special_tokens = bool(special)
        return (await self.context.render(request))[1]

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeResponse:
        request.warn_about_unknown_fields()
        self.context.resolve_model(request.model)
        size = self.context.model.vocab_size
        wrong = [token for token in request.tokens if not 0 <= token < size]
        if wrong:
            raise BadRequest(
                f"tokens has ids {wrong[:8]} that are out of vocabulary; the model's are 0 to "
                f"{size - 1}",
                "tokens",
            )
        return DetokenizeResponse(self.context.decode(request.tokens))

    def info(self) -> dict[str, Any]:
        """The tokenizer's class, its settings and the template that chats use."""
        tokenizer = self.context.tokenizer
        # Where the files are is this machine's business.
        settings = {
            name: plain(value)
            for name, value in tokenizer.init_kwargs.items()
            if not name.endswith(("_file", "name_or_path", "is_local", "_files_only"))
        }
        template = self.context.chat_template or tokenizer.chat_template
        return {
            **settings,
            "tokenizer_class": type(tokenizer).__name__,
            "chat_template": plain(template),
        }
