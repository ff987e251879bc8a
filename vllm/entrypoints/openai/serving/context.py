"""What every endpoint needs: the engine, its tokenizer, and the steps that all requests share."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from vllm.entrypoints.chat_utils import is_literal, render_chat
from vllm.entrypoints.openai.admission import Admission
from vllm.entrypoints.openai.errors import GenerationFailed, UnknownModel
from vllm.entrypoints.openai.protocol.chat import ChatRenderRequest
from vllm.entrypoints.openai.protocol.common import GenerationRequest, random_id
from vllm.entrypoints.openai.server_options import ServerOptions
from vllm.entrypoints.openai.serving.beams import search_beams
from vllm.entrypoints.openai.serving.output_log import logged
from vllm.entrypoints.openai.streaming import UsageMeter, merged
from vllm.entrypoints.openai.trace_context import trace_headers
from vllm.entrypoints.openai.wanted_copy import wanted_copy
from vllm.entrypoints.template_process import TemplateProcess
from vllm.errors import BadRequest
from vllm.inputs import TokensPrompt
from vllm.logger import init_logger
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.transformers_utils.chat_template import import_renderer
from vllm.transformers_utils.detokenizer import TextDecoder, text_decoder

if TYPE_CHECKING:
    from pydantic import BaseModel
    from transformers import PreTrainedTokenizerBase

    from vllm.config.model import ModelConfig
    from vllm.config.vllm import VllmConfig
    from vllm.messages.shapes import ShapeUsage

logger = init_logger(__name__)
# Texts below this are encoded on the event loop: handing them to a thread costs more.
INLINE_ENCODE_CHARS = 4096
# Of one HTTP request: each takes memory before the engine has a say.
MAX_SEQUENCES = 16_384
MAX_ID_CHARS = 256
# Tokenizers may shorten a text a little before they cut it.
NORMALIZING_FACTOR = 4
# Seconds of work for a thread that everybody shares.
MAX_ENCODE_CHARS = 4 * 2**20


class ServingEngine(Protocol):
    """What the server calls of AsyncLLM."""

    def generate(
        self,
        prompt: TokensPrompt,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
    ) -> AsyncGenerator[RequestOutput, None]: ...

    async def check_health(self) -> None:
        """Raises EngineDeadError."""
        ...

    async def reset_prefix_cache(self) -> object:
        """Forget every cached prefix."""
        ...

    async def launch_shapes(self) -> Sequence[Sequence[ShapeUsage]]:
        """By core, what became of the shapes that the device has prepared."""
        ...

    async def start_profile(self) -> None:
        """Raises NotAvailable."""
        ...

    async def stop_profile(self) -> None:
        """Raises NotAvailable."""
        ...


@dataclass(slots=True)
class ServingContext:
    """Owns the thread that tokenizes."""

    engine: ServingEngine
    tokenizer: PreTrainedTokenizerBase
    config: VllmConfig
    options: ServerOptions
    chat_template: str | None  # None: the tokenizer's own
    admission: Admission = field(default_factory=Admission)
    serial: itertools.count[int] = field(default_factory=itertools.count)  # of engine requests
    # A text of more characters cannot be few enough tokens, and would take seconds to encode.
    max_prompt_chars: int = field(init=False)
    _templates: TemplateProcess = field(init=False)
    _import: Future[None] | None = None
    _encoder: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="tokenize")
    )

    def __post_init__(self) -> None:
        longest = max(map(len, self.tokenizer.get_vocab()))
        self._templates = TemplateProcess(self.tokenizer.special_tokens_map)
        self.max_prompt_chars = NORMALIZING_FACTOR * longest * self.model.max_model_len

    def prepare_chat(self) -> None:
        """Import in the background what the first conversation would hold up all requests for."""
        if self.chat_template is not None or self.tokenizer.chat_template is not None:
            self._import = self._encoder.submit(import_renderer)

    def close(self) -> None:
        self._templates.close()
        self._encoder.shutdown(wait=False, cancel_futures=True)

    @property
    def model(self) -> ModelConfig:
        return self.config.model

    @property
    def model_name(self) -> str:
        return self.model.served_model_name[0]

    def resolve_model(self, name: str | None) -> str:
        """The name to answer with. Raises UnknownModel."""
        if name is None or name == "":
            return self.model_name
        if name not in self.model.served_model_name:
            served = ", ".join(repr(served) for served in self.model.served_model_name)
            raise UnknownModel(f"model {name!r} is not served here; served: {served}", "model")
        return name

    def admit(self, request: GenerationRequest) -> str:
        """Check what is the same for all endpoints that generate; returns the model's name."""
        self.admission.check()
        request.warn_about_unknown_fields()
        model = self.resolve_model(request.model)
        request.refuse_what_is_unavailable()
        if request.stream_options is not None and not request.stream:
            raise BadRequest("stream_options needs stream=true", "stream_options")
        if (
            request.stream
            and request.prompt_logprobs is not None
            and not request.streams_prompt_logprobs
        ):
            raise BadRequest("prompt_logprobs cannot be streamed; drop one", "prompt_logprobs")
        if not request.use_beam_search:
            for name, neutral in (("length_penalty", 1.0), ("early_stopping", False)):
                if getattr(request, name) not in (None, neutral):
                    raise BadRequest(f"{name} needs use_beam_search=true", name)
        return model

    def usage_meter(self) -> UsageMeter:
        return UsageMeter(self.options.enable_prompt_tokens_details)

    async def encode(self, text: str, add_special_tokens: bool, param: str) -> list[int]:
        if len(text) < INLINE_ENCODE_CHARS:
            return self._encode(text, add_special_tokens)
        most = max(MAX_ENCODE_CHARS, self.max_prompt_chars)
        if len(text) > most:
            raise BadRequest(
                f"{param} has {len(text)} characters; {most} are encoded at once. Send less.", param
            )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoder, self._encode, text, add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        decoder = self.text_decoder
        return (
            decoder.decode_skipping(token_ids) if skip_special_tokens else decoder.decode(token_ids)
        )

    @property
    def text_decoder(self) -> TextDecoder:
        return text_decoder(self.tokenizer, self.model.vocab_size)

    async def render(self, request: ChatRenderRequest) -> tuple[str, list[int]]:
        """The prompt of a conversation, as text and as tokens."""
        prompt = await self.render_text(request)
        if not isinstance(prompt, str):
            return self.decode(prompt), prompt
        self.check_length(prompt, request, "messages")
        return prompt, await self.encode(prompt, request.add_special_tokens, "messages")

    async def render_text(self, request: ChatRenderRequest) -> str | list[int]:
        """The prompt of a conversation, as tokens where its tokenizer makes them at once."""
        is_foreign = request.chat_template is not None and is_literal(request.chat_template)
        if is_foreign and not self.options.trust_request_chat_template:
            raise BadRequest(
                "this server does not run templates that come with a request; leave it out, or "
                "start the server with --trust-request-chat-template",
                "chat_template",
            )
        kwargs: dict[str, Any] = dict(request.chat_template_kwargs or {})
        if request.documents is not None:
            kwargs["documents"] = request.documents
        return await self._rendered(
            is_foreign,
            messages=[message.model_dump(exclude_none=True) for message in request.messages],
            chat_template=request.chat_template or self.chat_template,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            tools=request.tools,
            chat_template_kwargs=kwargs,
            content_format=self.options.chat_template_content_format,
        )

    async def _rendered(self, is_foreign: bool, **arguments: Any) -> str | list[int]:
        """Long or early conversations in a thread, templates of requests in a process."""
        loop = asyncio.get_running_loop()
        if is_foreign:
            render = functools.partial(self._templates.render, **arguments)
            return await loop.run_in_executor(None, render)
        render_own = functools.partial(render_chat, self.tokenizer, **arguments)
        num_chars = sum(len(str(message.get("content"))) for message in arguments["messages"])
        is_early = self._import is not None and not self._import.done()
        if num_chars < INLINE_ENCODE_CHARS and not is_early:
            return render_own()
        return await loop.run_in_executor(self._encoder, render_own)

    def check_length(self, text: str, request: BaseModel, param: str) -> None:
        """Raises BadRequest for what cannot fit into the model, without counting its tokens."""
        if not isinstance(request, GenerationRequest) or request.truncate_prompt_tokens is not None:
            return
        if len(text) > self.max_prompt_chars:
            raise BadRequest(
                f"the prompt has {len(text)} characters; this engine accepts "
                f"{self.model.max_model_len - 1} tokens, as this model's maximum context length is "
                f"{self.model.max_model_len} tokens, prompt and output together. Shorten it, or "
                "raise --max-model-len.",
                param,
            )

    def response_id(self, prefix: str, request: GenerationRequest, header: str | None) -> str:
        """Raises BadRequest: an id is repeated in logs, where a line break would forge a line."""
        given = request.request_id
        if given and (len(given) > MAX_ID_CHARS or not given.isprintable()):
            raise BadRequest(
                f"request_id must have at most {MAX_ID_CHARS} printable characters", "request_id"
            )
        return f"{prefix}-{given or header or random_id()}"

    async def generate(
        self,
        prompts: Sequence[TokensPrompt],
        params: SamplingParams,
        response_id: str,
        request: GenerationRequest,
    ) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Outputs of all prompts as they come, with the index of theirs.

        Closing it aborts what still runs. Raises BadRequest, EngineDeadError, GenerationFailed or
        Unavailable.
        """
        num_sequences = len(prompts) * params.num_sequences
        if num_sequences > MAX_SEQUENCES:
            name = "n" if params.best_of is None else "best_of"
            raise BadRequest(
                f"{len(prompts)} prompts times {name}={params.num_sequences} are {num_sequences} "
                f"sequences; a request may have {MAX_SEQUENCES}",
                name,
            )
        if self.config.observability.enable_log_requests:
            for prompt in prompts:
                self._log(response_id, prompt, params)
        with self.admission.open(num_sequences):
            outputs = self._outputs(prompts, params, response_id, request)
            if self.options.enable_log_outputs:
                outputs = logged(outputs, response_id, self.options.max_log_len)
            try:
                async for prompt_idx, output in outputs:
                    for sequence in output.outputs:
                        if sequence.finish_reason == "error":
                            raise GenerationFailed(str(sequence.stop_reason))
                    yield prompt_idx, output
            finally:
                await outputs.aclose()

    def _outputs(
        self,
        prompts: Sequence[TokensPrompt],
        params: SamplingParams,
        response_id: str,
        request: GenerationRequest,
    ) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        headers, priority = trace_headers(), request.priority or 0
        copy = wanted_copy()

        def generate(
            prompt: TokensPrompt, wanted: SamplingParams
        ) -> AsyncGenerator[RequestOutput, None]:
            # Clients may repeat their ids; the engine's are unique.
            engine_id = f"{response_id}-{next(self.serial)}"
            return self.engine.generate(
                prompt,
                wanted,
                engine_id,
                trace_headers=headers,
                priority=priority,
                data_parallel_rank=copy,
            )

        if request.use_beam_search:
            decode = functools.partial(self.decode, skip_special_tokens=params.skip_special_tokens)
            return search_beams(prompts, params, request, self.model, generate, decode)
        return merged([generate(prompt, params) for prompt in prompts])

    def _log(self, response_id: str, prompt: TokensPrompt, params: SamplingParams) -> None:
        limit = self.options.max_log_len
        text, ids = prompt.get("prompt"), prompt["prompt_token_ids"]
        logger.info(
            "request %s: prompt %r, token ids %s, %s",
            response_id,
            None if text is None else text[:limit],
            ids[:limit],
            params,
        )


def text_prompt(ids: list[int], text: str | None, request: GenerationRequest) -> TokensPrompt:
    """A prompt for the engine; `text` is what an output repeats as its prompt."""
    prompt = TokensPrompt(prompt_token_ids=ids)
    if text is not None:
        prompt["prompt"] = text
    if request.cache_salt is not None:
        if not request.cache_salt:
            raise BadRequest("cache_salt must not be empty; leave it out", "cache_salt")
        prompt["cache_salt"] = request.cache_salt
    return prompt
