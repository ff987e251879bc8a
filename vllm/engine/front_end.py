"""What LLMEngine and AsyncLLM share: processors, statistics and calls on one side of a client."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import vllm.errors
from vllm.config.vllm import VllmConfig
from vllm.engine.client import EngineClient
from vllm.engine.output_processor import OpenRequest, OutputProcessor
from vllm.engine.processor import ProcessedRequest, Processor
from vllm.engine.tokenizer import model_tokenizer
from vllm.errors import BadRequest, NotAvailable
from vllm.logger import init_logger
from vllm.messages import functions
from vllm.messages.engine import (
    Abort,
    Call,
    CallResult,
    EngineStats,
    FinishReason,
    StepUpdates,
)
from vllm.metrics.logging import LoggingStats
from vllm.metrics.stats import IterationStats, StatLogger
from vllm.metrics.tracing import RequestTracer, TracedRequest
from vllm.outputs import RequestOutput
from vllm.transformers_utils.detokenizer import text_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = init_logger(__name__)


class CallFailed(RuntimeError):
    """A control-plane call failed in the engine core, which goes on."""


class FrontEnd:
    """Sends requests to the core and turns its steps into outputs. Not thread-safe."""

    def __init__(self, config: VllmConfig, client: EngineClient) -> None:
        self.config = config
        self.client = client
        self.tokenizer: PreTrainedTokenizerBase | None = None
        first = config.parallel.data_parallel_start_rank
        copies = range(first, first + config.parallel.served_copies)
        self.processor = Processor(config.model, None, config.scheduler.policy, copies)
        self.output_processor = OutputProcessor(None, config.scheduler.stream_interval)
        if not config.model.skip_tokenizer_init:
            self.set_tokenizer(model_tokenizer(config.model))
        self.stat_loggers: list[StatLogger] = []
        self._call_ids = itertools.count()
        self._answers: dict[int, dict[int, CallResult]] = {}  # of open calls, by core
        self.tracer: RequestTracer | None = None
        if endpoint := config.observability.otlp_traces_endpoint:
            self.tracer = RequestTracer(endpoint, config.model.served_model_name[0])
            self.output_processor.on_finished = self._trace

    def set_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """For requests from now on."""
        self.tokenizer = self.processor.tokenizer = tokenizer
        self.output_processor.set_decoder(text_decoder(tokenizer, self.config.model.vocab_size))

    def log_statistics(self) -> None:
        """Attach what --disable-log-stats leaves out."""
        observability = self.config.observability
        if not observability.disable_log_stats:
            log = IntervalLog(
                observability.log_stats_interval_s,
                len(self.client.cores),
                self.config.parallel.data_parallel_start_rank,
            )
            self.stat_loggers.append(log)

    def log_line(self) -> None:
        for stat_logger in self.stat_loggers:
            if isinstance(stat_logger, IntervalLog):
                stat_logger.log()

    def need_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise NotAvailable(
                "the engine was started with --skip-tokenizer-init; leave the flag out to use a "
                "tokenizer"
            )
        return self.tokenizer

    def submit(self, request: ProcessedRequest) -> None:
        """Hand a request to the core. Raises BadRequest, and then nothing is left of it."""
        self._check_processors(request)
        self.output_processor.add(request)
        try:
            for child in request.children:
                self.client.send(child)
        except BaseException:
            self.abort([request.request_id])
            raise

    def _check_processors(self, request: ProcessedRequest) -> None:
        if not request.params.logits_processors:
            return
        backend = self.config.parallel.distributed_executor_backend
        if self.client.is_remote or backend != "uni":
            raise NotAvailable(
                "logits_processors are Python callables and need the model in this process. Use "
                "LLM with VLLM_ENABLE_V1_MULTIPROCESSING=0 and --distributed-executor-backend uni, "
                "or logit_bias, allowed_token_ids or bad_words.",
                "logits_processors",
            )

    def abort(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """End requests, wherever they are; returns their last outputs."""
        core_ids, outputs = self.output_processor.abort(request_ids)
        if core_ids:
            self.client.send(Abort(core_ids))
        return outputs

    def process(self, step: StepUpdates) -> list[RequestOutput]:
        processed = self.output_processor.process(step)
        if processed.to_abort:
            self.client.send(Abort(processed.to_abort))
        for stat_logger in self.stat_loggers:
            stat_logger.record(step.stats, processed.iteration, step.core)
        return processed.outputs

    def close(self) -> None:
        """Send the traces that wait."""
        if self.tracer is not None:
            self.tracer.close()

    def _trace(self, request: OpenRequest) -> None:
        assert self.tracer is not None
        self.tracer.record(
            TracedRequest(
                request_id=request.id,
                headers=request.trace_headers,
                params=request.params,
                metrics=request.metrics,
                num_prompt_tokens=len(request.prompt_token_ids),
                num_generation_tokens=sum(len(s.token_ids) for s in request.sequences),
                finish_reasons=tuple(str(s.finish_reason) for s in request.sequences),
            )
        )

    def call(self, method: str, args: Iterable[Any]) -> int:
        """Start a control-plane call of every core; returns the id its results will have."""
        arguments = list(args)
        if self.client.is_remote and any(map(callable, arguments)) and not functions.may_travel():
            raise NotAvailable(
                f"{method} with a function needs the model in this process, and the engine core is "
                "another. Use LLM with VLLM_ENABLE_V1_MULTIPROCESSING=0, or set "
                f"{functions.LEAVE}=1, with which functions travel as pickles."
            )
        call = Call(next(self._call_ids), method, arguments)
        self.client.send(call)
        self._answers[call.call_id] = {}
        return call.call_id

    def answered(self, result: CallResult) -> list[CallResult] | None:
        """What every core has answered to a call, by core; None while an answer is missing."""
        answers = self._answers.get(result.call_id)
        if answers is None:
            return None
        answers[result.core] = result
        if len(answers) < len(self.client.cores):
            return None
        del self._answers[result.call_id]
        return [answers[core] for core in sorted(answers)]


class IntervalLog:
    """Logs statistics at intervals, for programs that have no loop of their own to do it."""

    def __init__(self, interval_s: float, num_engines: int = 1, first_engine: int = 0) -> None:
        self.stats = LoggingStats(interval_s, num_engines=num_engines, first_engine=first_engine)

    def record(self, engine: EngineStats, iteration: IterationStats, core: int = 0) -> None:
        stats = self.stats
        stats.record(engine, iteration, core)
        if stats.clock() - stats.last_line_at_s >= stats.interval_s:
            self.log()

    def log(self) -> None:
        for line in self.stats.lines():
            logger.info("%s", line)


def raise_rejection(output: RequestOutput) -> None:
    """Raises BadRequest if the engine found that a request asks for what cannot be done."""
    for sequence in output.outputs:
        if sequence.finish_reason == str(FinishReason.REJECTED):
            reason = str(sequence.stop_reason)
            raise BadRequest(reason, reason.partition(":")[0])


def values_of(results: Iterable[CallResult]) -> list[Any]:
    """What a call returned, by core. Raises what it raised, as `_value_of`."""
    return [_value_of(result) for result in results]


def _value_of(result: CallResult) -> Any:
    """Raises what the call raised, if it is an error a user can act on, else CallFailed."""
    if result.error is None:
        return result.value
    kind, _, text = result.error.partition(": ")
    known = vars(vllm.errors).get(kind)
    if isinstance(known, type) and issubclass(known, BadRequest):
        raise known(text)
    raise CallFailed(result.error)
