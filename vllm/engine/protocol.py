"""What a server may call of an engine, under vLLM's name for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vllm.config.model import ModelConfig
    from vllm.config.vllm import VllmConfig


@runtime_checkable
class EngineClient(Protocol):
    """AsyncLLM is one. Everything that waits raises EngineDeadError once the engine is gone."""

    @property
    def is_running(self) -> bool: ...
    @property
    def is_stopped(self) -> bool: ...
    @property
    def errored(self) -> bool: ...
    @property
    def dead_error(self) -> BaseException: ...

    def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        lora_request: None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]: ...

    async def abort(self, request_id: str | Iterable[str]) -> None: ...
    async def check_health(self) -> None: ...
    async def get_tokenizer(self) -> PreTrainedTokenizerBase: ...
    async def get_model_config(self) -> ModelConfig: ...
    async def get_vllm_config(self) -> VllmConfig: ...
    async def do_log_stats(self) -> None: ...
    async def is_tracing_enabled(self) -> bool: ...
    async def reset_prefix_cache(self) -> bool: ...
    async def start_profile(self) -> None: ...
    async def stop_profile(self) -> None: ...
