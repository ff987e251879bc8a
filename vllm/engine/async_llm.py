"""AsyncLLM: the engine for many callers at once, each with an async iterator of its outputs."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec
from typing_extensions import Self

from vllm.beam_search import beam_search_async, request_output, rounds
from vllm.config.vllm import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.engine.client import EngineClient
from vllm.engine.clients import process_client
from vllm.engine.front_end import FrontEnd, raise_rejection, values_of
from vllm.engine.older_arguments import refuse, with_keywords
from vllm.engine.output_stream import OutputStream
from vllm.engine.processor import ProcessedRequest
from vllm.engine.request_stream import RequestStream
from vllm.errors import BadRequest, ConfigError, EngineDeadError, NotAvailable
from vllm.inputs import ParsedPrompt, parse_prompt
from vllm.logger import init_logger
from vllm.messages.engine import CallResult, FromEngine, StepUpdates
from vllm.messages.shapes import ShapeUsage
from vllm.metrics.stats import StatLogger
from vllm.outputs import RequestOutput
from vllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vllm.config.model import ModelConfig
    from vllm.config.parallel import ParallelConfig
    from vllm.config.scheduler import SchedulerConfig
    from vllm.config.structured import StructuredOutputsConfig
    from vllm.executor.control import Method

logger = init_logger(__name__)

__all__ = ["AsyncEngineArgs", "AsyncLLM"]

# Texts below this are encoded on the event loop: handing them to a thread costs more.
INLINE_ENCODE_CHARS: Final = 4096


class AsyncLLM:
    """Used on one event loop. A thread of its own waits for the engine core."""

    def __init__(self, config: VllmConfig, client: EngineClient) -> None:
        self.vllm_config = config
        self.client = client
        self._front = FrontEnd(config, client)
        self._streams: dict[str, OutputStream] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._error: EngineDeadError | None = None
        self._mourner: asyncio.Future[None] | None = None  # of the one caller of `died`
        self._loop: asyncio.AbstractEventLoop | None = None
        self._receiver: threading.Thread | None = None
        # Messages from the receiving thread to the loop, which is woken once for all that wait.
        self._arrived: deque[FromEngine | EngineDeadError] = deque()
        self._is_woken = False

    @classmethod
    def from_vllm_config(
        cls,
        vllm_config: VllmConfig,
        start_engine_loop: bool = True,
        usage_context: Any = None,
        stat_loggers: None = None,
        *,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Self:
        """Start the engine core in a process of its own. Raises ConfigError, LoadError.

        `meanwhile` is called while the core loads the model. Statistics go to the loggers that are
        added. The loop of the engine starts with the first request, whatever `start_engine_loop`,
        and nobody collects usage, whatever `usage_context`.
        """
        refuse(stat_loggers=stat_loggers)
        if vllm_config.parallel.is_externally_launched:
            raise ConfigError(
                "--distributed-executor-backend external_launcher: the engine runs in the "
                "processes that torchrun has started. Use LLM or LLMEngine, or another backend."
            )
        client = process_client(vllm_config, wait=False)
        try:
            engine = cls.from_client(vllm_config, client)
            meanwhile()
        except BaseException:
            client.abandon()
            raise
        client.wait_until_ready()
        return engine

    @classmethod
    def from_client(cls, config: VllmConfig, client: EngineClient) -> Self:
        engine = cls(config, client)
        # A full collection that walks through all modules stops everybody for a third of a second.
        gc.collect()
        gc.freeze()
        return engine

    @classmethod
    def from_engine_args(
        cls,
        engine_args: EngineArgs,
        start_engine_loop: bool = True,
        usage_context: Any = None,
        stat_loggers: None = None,
    ) -> Self:
        """As `from_vllm_config`; statistics are logged unless that is disabled."""
        refuse(stat_loggers=stat_loggers)
        engine = cls.from_vllm_config(engine_args.create_engine_config())
        engine._front.log_statistics()
        return engine

    # -- facts ------------------------------------------------------------------------------------

    @property
    def model_config(self) -> ModelConfig:
        return self.vllm_config.model

    @property
    def num_open_requests(self) -> int:
        return len(self._front.output_processor.requests)

    @property
    def errored(self) -> bool:
        return self._error is not None

    @property
    def is_running(self) -> bool:
        return self._error is None

    @property
    def is_stopped(self) -> bool:
        return self._error is not None

    @property
    def dead_error(self) -> BaseException:
        """What everything raises now, if `errored`."""
        return self._error or EngineDeadError("the engine lives")

    async def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises NotAvailable with --skip-tokenizer-init."""
        return self._front.need_tokenizer()

    async def get_model_config(self) -> ModelConfig:
        return self.model_config

    async def get_vllm_config(self) -> VllmConfig:
        return self.vllm_config

    async def get_scheduler_config(self) -> SchedulerConfig:
        return self.vllm_config.scheduler

    async def get_parallel_config(self) -> ParallelConfig:
        return self.vllm_config.parallel

    async def get_decoding_config(self) -> StructuredOutputsConfig:
        return self.vllm_config.structured_outputs

    async def is_sleeping(self) -> bool:
        """It never does: see `sleep`."""
        return False

    async def is_tracing_enabled(self) -> bool:
        return self._front.tracer is not None

    async def do_log_stats(self) -> None:
        """Log a line of statistics now, where they are logged at all."""
        self._front.log_line()

    def get_default_sampling_params(self) -> SamplingParams:
        return self._front.processor.default_params()

    def add_stat_logger(self, stat_logger: StatLogger) -> None:
        self._front.stat_loggers.append(stat_logger)

    async def check_health(self) -> None:
        """Raises EngineDeadError."""
        self._start()

    async def is_hung(self) -> bool:
        """The core's process gives no sign of life: requests wait, until it goes on or is ended."""
        return await self.client.pulse.has_stopped()

    def silences_s(self) -> list[float]:
        """Since the process of each core last gave a sign of life."""
        return self.client.pulse.silences_s()

    async def died(self) -> EngineDeadError:
        """Wait for the end of the engine, and say what it died of."""
        while self._error is None:
            self._mourner = self._start().create_future()
            await self._mourner
        return self._error

    # -- requests ---------------------------------------------------------------------------------

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        lora_request: None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
        *,
        prompt_text: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Outputs of a request as they come; `prompt` in any form of vllm.inputs.

        `trace_headers` are those of the HTTP request that asked, for --otlp-traces-endpoint.
        `data_parallel_rank`: the only copy of the model that may serve it.
        Ending the iteration early, by closing it or by cancelling the task, aborts the request.
        Raises BadRequest, EngineDeadError; NotAvailable for what REFUSED says more of.
        """
        refuse(
            lora_request=lora_request,
            prompt_text=prompt_text,
            tokenization_kwargs=tokenization_kwargs or None,
        )
        request = await self._processed(
            request_id, prompt, sampling_params, None, trace_headers, priority, data_parallel_rank
        )
        stream = self._open(request)
        try:
            while True:
                output = await stream.next()
                raise_rejection(output)
                yield output
                if output.finished:
                    return
        finally:
            self._close(request.request_id, stream)

    async def add_request(
        self,
        request_id: str,
        prompt: Any,
        params: SamplingParams | None = None,
        arrival_time: float | None = None,
        lora_request: None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
        prompt_text: str | None = None,
    ) -> RequestStream:
        """Queue a request, as `generate` does when it is first asked for an output.

        `arrival_time`: as `time.time()` gives it. Raises as `generate`.
        """
        refuse(
            lora_request=lora_request,
            prompt_text=prompt_text,
            tokenization_kwargs=tokenization_kwargs or None,
        )
        request = await self._processed(
            request_id, prompt, params, arrival_time, trace_headers, priority, data_parallel_rank
        )
        stream = self._open(request)
        return RequestStream(
            request.request_id, stream, lambda: self._close(request.request_id, stream)
        )

    async def _processed(
        self,
        request_id: str | None,
        prompt: Any,
        params: SamplingParams | None,
        arrival_time_s: float | None,
        trace_headers: Mapping[str, str] | None,
        priority: int,
        data_parallel_rank: int | None,
    ) -> ProcessedRequest:
        if not request_id or not isinstance(request_id, str):
            raise BadRequest(
                f"request_id must be text that no open request has, got {request_id!r}",
                "request_id",
            )
        parsed = await self._parse(prompt)
        return self._front.processor.process(
            request_id,
            parsed,
            params,
            priority=priority,
            arrival_time_s=arrival_time_s,
            trace_headers=trace_headers,
            data_parallel_rank=data_parallel_rank,
        )

    async def beam_search(
        self, prompt: Any, request_id: str, params: BeamSearchParams
    ) -> AsyncGenerator[RequestOutput, None]:
        """One output: the most likely continuations, best first. Raises BadRequest."""
        if not isinstance(params, BeamSearchParams):
            raise BadRequest(
                f"params must be BeamSearchParams, got a {type(params).__name__}", "params"
            )
        parsed = await self._parse(prompt)
        if parsed.token_ids is None:
            ids = self._front.processor.encode(parsed.text or "")
            parsed = ParsedPrompt(parsed.text, ids, parsed.cache_salt)
        ids_of_steps = (f"{request_id}-beam-{index}" for index in itertools.count())
        (found,) = await beam_search_async(
            rounds([parsed], params, self.model_config),
            lambda beam, step: self.generate(beam, step, next(ids_of_steps)),
        )
        tokenizer = self._front.tokenizer
        decode = None if tokenizer is None else lambda ids: str(tokenizer.decode(ids))
        yield request_output(request_id, parsed, found, decode, with_logprobs=True)

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End requests; their iterators end with an output whose finish reason is abort."""
        ids = [request_id] if isinstance(request_id, str) else list(request_id)
        for output in self._front.abort(ids):
            self._streams[output.request_id].put(output)

    async def abort_all(self) -> None:
        await self.abort(list(self._streams))

    async def encode(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotAvailable("pooling models are not available yet; this engine generates text")

    async def _parse(self, prompt: Any) -> ParsedPrompt:
        """The prompt; a long text is encoded in a thread."""
        parsed = parse_prompt(prompt)
        if parsed.token_ids is not None or len(parsed.text or "") < INLINE_ENCODE_CHARS:
            return parsed
        loop = asyncio.get_running_loop()
        ids = await loop.run_in_executor(None, self._front.processor.encode, parsed.text or "")
        return ParsedPrompt(parsed.text, ids, parsed.cache_salt)

    def _open(self, request: ProcessedRequest) -> OutputStream:
        loop = self._start()
        self._front.submit(request)
        is_delta = request.params.output_kind is RequestOutputKind.DELTA
        stream = self._streams[request.request_id] = OutputStream(loop, is_delta)
        return stream

    def _close(self, request_id: str, stream: OutputStream) -> None:
        if self._streams.get(request_id) is stream:
            del self._streams[request_id]
            self._front.abort([request_id])

    # -- control plane ----------------------------------------------------------------------------

    async def call(self, method: str, *args: Any) -> list[Any]:
        """Run a control-plane method of the cores, after the requests sent so far; returns what it
        returned, by core."""
        loop = self._start()
        future = loop.create_future()
        call_id = self._front.call(method, args)
        self._calls[call_id] = future
        try:
            return values_of(await future)
        finally:
            del self._calls[call_id]

    async def reset_prefix_cache(self, device: Any = None) -> bool:
        """Forget cached prefixes; False while requests hold blocks. There is one `device`."""
        return all(await self.call("reset_prefix_cache"))

    async def collective_rpc(
        self,
        method: Method,
        timeout: float | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Run a method of the Worker on every rank; returns what each returned.

        Or a function of the Worker, which crosses processes with
        VLLM_ALLOW_INSECURE_SERIALIZATION=1 only. After `timeout` seconds it goes on, and nobody
        waits for it any more: TimeoutError.
        """
        called = self.call("collective_rpc", with_keywords(method, kwargs), *args)
        try:
            by_core = await asyncio.wait_for(called, timeout)
        except asyncio.TimeoutError:  # on Python 3.10 not yet the built-in one
            raise TimeoutError(f"collective_rpc took more than {timeout} s") from None
        return list(itertools.chain.from_iterable(by_core))

    async def launch_shapes(self) -> list[list[ShapeUsage]]:
        """By core, what became of every prepared shape; [] on devices that prepare none."""
        if not self.client.cores[0].counts_shapes:
            return [[] for _ in self.client.cores]
        return msgspec.convert(await self.call("launch_shapes"), list[list[ShapeUsage]])

    async def start_profile(self) -> None:
        """Start the torch profiler. Raises NotAvailable without VLLM_TORCH_PROFILER_DIR."""
        await self.call("profile", True)

    async def stop_profile(self) -> None:
        """Stop the torch profiler; requests wait while its traces are written."""
        await self.call("profile", False)

    async def sleep(self, level: int = 1) -> NoReturn:
        raise NotAvailable("sleep mode is not available yet; end the engine to free its memory")

    async def wake_up(self, tags: list[str] | None = None) -> NoReturn:
        raise NotAvailable("sleep mode is not available yet, so there is nothing to wake up")

    def shutdown(self) -> None:
        """End the engine core. Open requests fail with EngineDeadError."""
        self._fail(EngineDeadError("the engine was shut down"))
        self.client.stop()
        if self._receiver is not None:
            self._receiver.join()
        self.client.close()
        self._front.close()

    # -- messages ---------------------------------------------------------------------------------

    def _start(self) -> asyncio.AbstractEventLoop:
        """The loop of all callers; from the first one on, messages are received. Raises if dead."""
        if self._error is not None:
            raise EngineDeadError(str(self._error)) from self._error
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            assert self._loop is None or self._loop.is_closed(), (
                "AsyncLLM is used on one event loop"
            )
            self._loop = loop
            self._is_woken = False
        if self._receiver is None:
            self._receiver = threading.Thread(target=self._receive, name="engine-core", daemon=True)
            self._receiver.start()
        return loop

    def _receive(self) -> None:
        """Thread: hand messages to the loop until the core is gone."""
        try:
            while (message := self.client.receive()) is not None:
                self._hand_over(message)
        except EngineDeadError as error:
            self._hand_over(error)
        except Exception as error:
            # Nobody else would notice that nothing is received any more.
            logger.exception("Messages of the engine could not be received")
            self._hand_over(EngineDeadError(f"nothing can be received: {error!r}"))

    def _hand_over(self, message: FromEngine | EngineDeadError) -> None:
        self._arrived.append(message)
        if self._is_woken:
            return
        self._is_woken = True
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._take_arrived)
        except RuntimeError:
            # The loop is closed; the next one takes this message with the ones after it.
            self._is_woken = False

    def _take_arrived(self) -> None:
        self._is_woken = False
        while self._arrived:
            message = self._arrived.popleft()
            try:
                self._take(message)
            except Exception as error:
                # A step that was half taken over leaves requests that would wait for ever.
                logger.exception("Outputs could not be processed")
                self._fail(EngineDeadError(f"outputs could not be processed: {error!r}"))

    def _take(self, message: FromEngine | EngineDeadError) -> None:
        if self._error is not None:
            return
        if isinstance(message, StepUpdates):
            for output in self._front.process(message):
                self._streams[output.request_id].put(output)
        elif isinstance(message, EngineDeadError):
            logger.error("The engine is dead: %s", message)
            self._fail(message)
        elif isinstance(message, CallResult):
            results = self._front.answered(message)
            future = self._calls.get(message.call_id)
            if results is not None and future is not None and not future.done():
                future.set_result(results)

    def _fail(self, error: EngineDeadError) -> None:
        """Tell everybody. From now on everything raises `error`."""
        if self._error is not None:
            return
        self._error = error
        if self._mourner is not None and not self._mourner.done():
            self._mourner.set_result(None)
        for stream in self._streams.values():
            stream.fail(error)
        for future in self._calls.values():
            if not future.done():
                future.set_exception(error)
